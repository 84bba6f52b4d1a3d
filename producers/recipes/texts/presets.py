"""The recipes of texts by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from producers.recipes.custom import custom_of, is_custom, recorded_custom
from producers.recipes.recipe import made_of, recorded_in
from producers.recipes.texts.custom import CustomText
from producers.recipes.texts.given import CleanText, Given
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.sentences import Sentences

TEXT_RECIPES: Mapping[str, type[TextRecipe]] = {
    kind.name: kind for kind in (CleanText, Mask, Drop, Sentences, Given)
}


def text_recipe(
    values: Mapping[str, Any], where: str = "[recipe.text]", beside: Path | None = None
) -> TextRecipe:
    """Creates a recipe from its name and parameters.

    Args:
        values: name and parameters.
        where: the name of the table, for messages.
        beside: folder of the TOML file with the table, in which custom recipes are searched.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type or out of range.
    """
    if is_custom(values):
        return custom_of(CustomText, values, where, beside)
    return made_of(TEXT_RECIPES, where, values)


def recorded_text_recipe(
    fingerprint: Mapping[str, str | int], beside: Path | None = None
) -> TextRecipe | None:
    """The recipe of a store's texts; None if this version does not have it.

    Args:
        fingerprint: the store's.
        beside: folder in which custom recipes are searched before the Python path.

    Raises:
        ConfigError: it is a custom recipe whose function is not there.
    """
    custom = recorded_custom(CustomText, fingerprint, beside)
    return custom or recorded_in(TEXT_RECIPES, "text", fingerprint)
