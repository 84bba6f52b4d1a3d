"""A function of the user as a recipe of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from producers.recipes.custom import Custom
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster, clean_view
from producers.recipes.images.recipe import ImageRecipe, check_out


@dataclass(frozen=True)
class CustomImage(Custom, ImageRecipe):
    """Every view is made by a function of the user: ``(PIL.Image, numpy Generator) -> PIL.Image``.

    An image of exactly the backbone's size is the view; any other is resized and cropped like the
    backbone's clean view.
    """

    is_shared: ClassVar[bool] = False

    def prepare(self) -> None:
        """Imports the function."""
        self.calls(_image)

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes views; see :class:`ImageRecipe`.

        Raises:
            BadSampleError: the function refuses the image, or what it returned is too narrow.
            RecipeError: the function failed.
        """
        check_out(out, views, spec)
        made = self.calls(_image).views(poster.image.copy, seeds)
        for view, image in zip(out, made, strict=True):
            if image.size == (spec.size, spec.size):
                view[:] = np.asarray(image)
            else:
                view[:] = clean_view(Poster(image, poster.kernels), spec)


def _image(returned: Any) -> Image.Image:
    """The returned image as RGB; raises an error if it is none, or cannot be converted."""
    if not isinstance(returned, Image.Image):
        raise TypeError(f"{type(returned).__name__}, not a PIL.Image")
    try:
        image = returned.convert("RGB")
    except MemoryError:
        raise
    except Exception as e:  # noqa: BLE001  any decoder's, if a file is read only now
        raise ValueError(f"an image of mode {returned.mode} that cannot be read: {e}") from None
    if not (image.width and image.height):
        raise ValueError(f"an image of {image.width} x {image.height} pixels")
    return image
