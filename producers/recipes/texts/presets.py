"""The recipes of texts by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from producers.recipes.recipe import made_of, recorded_in
from producers.recipes.texts.given import CleanText, Given
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.sentences import Sentences

TEXT_RECIPES: Mapping[str, type[TextRecipe]] = {
    kind.name: kind for kind in (CleanText, Mask, Drop, Sentences, Given)
}


def text_recipe(values: Mapping[str, Any], where: str = "[recipe.text]") -> TextRecipe:
    """Creates a recipe from its name and parameters.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type or out of range.
    """
    return made_of(TEXT_RECIPES, where, values)


def recorded_text_recipe(fingerprint: Mapping[str, str | int]) -> TextRecipe | None:
    """The recipe of a store's texts; None if this version does not have it."""
    return recorded_in(TEXT_RECIPES, "text", fingerprint)
