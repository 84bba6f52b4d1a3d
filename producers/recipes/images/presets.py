"""The recipes of images by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from producers.recipes.custom import custom_of, is_custom, recorded_custom
from producers.recipes.images.custom import CustomImage
from producers.recipes.images.fixed import CleanImage, FiveCrop, Flip, TenCrop
from producers.recipes.images.policies import RandAugment, TrivialAugment
from producers.recipes.images.random_crops import Crop, Multicrop, Simclr
from producers.recipes.images.recipe import ImageRecipe
from producers.recipes.recipe import made_of, recorded_in

IMAGE_RECIPES: Mapping[str, type[ImageRecipe]] = {
    kind.name: kind
    for kind in (
        *(CleanImage, Flip, FiveCrop, TenCrop),
        *(Crop, Simclr, Multicrop, RandAugment, TrivialAugment),
    )
}


def image_recipe(
    values: Mapping[str, Any], where: str = "[recipe.image]", beside: Path | None = None
) -> ImageRecipe:
    """Creates a recipe from its name and parameters.

    Args:
        values: name and parameters.
        where: the name of the table, for messages.
        beside: folder of the TOML file with the table, in which custom recipes are searched.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type or out of range.
    """
    if is_custom(values):
        return custom_of(CustomImage, values, where, beside)
    return made_of(IMAGE_RECIPES, where, values)


def recorded_image_recipe(
    fingerprint: Mapping[str, str | int], beside: Path | None = None
) -> ImageRecipe | None:
    """The recipe of a store's images; None if this version does not have it.

    Args:
        fingerprint: the store's.
        beside: folder in which custom recipes are searched before the Python path.

    Raises:
        ConfigError: it is a custom recipe whose function is not there.
    """
    custom = recorded_custom(CustomImage, fingerprint, beside)
    return custom or recorded_in(IMAGE_RECIPES, "image", fingerprint)
