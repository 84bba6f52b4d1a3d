"""The recipes of images by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from producers.recipes.images.fixed import CleanImage, FiveCrop, Flip, TenCrop
from producers.recipes.images.random_crops import Crop, Multicrop, Simclr
from producers.recipes.images.recipe import ImageRecipe
from producers.recipes.recipe import made_of, recorded_in

IMAGE_RECIPES: Mapping[str, type[ImageRecipe]] = {
    kind.name: kind for kind in (CleanImage, Flip, FiveCrop, TenCrop, Crop, Simclr, Multicrop)
}


def image_recipe(values: Mapping[str, Any], where: str = "[recipe.image]") -> ImageRecipe:
    """Creates a recipe from its name and parameters.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type or out of range.
    """
    return made_of(IMAGE_RECIPES, where, values)


def recorded_image_recipe(fingerprint: Mapping[str, str | int]) -> ImageRecipe | None:
    """The recipe of a store's images; None if this version does not have it."""
    return recorded_in(IMAGE_RECIPES, "image", fingerprint)
