"""Views as producers make them, for one image or one text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from featurestore.records import view_seeds
from producers.kernels.implementations import Kernels
from producers.recipes.images.geometry import ImageSpec, Poster
from producers.recipes.images.random_crops import Simclr
from producers.recipes.images.recipe import ImageRecipe
from producers.recipes.texts.hiding import Mask
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import TextViews


def augmented_views(
    poster: Image.Image,
    *,
    size: int,
    base_seed: int,
    index: int,
    views: int,
    out: np.ndarray,
    first_view: int = 0,
    kernels: Kernels | None = None,
    recipe: ImageRecipe | None = None,
) -> None:
    """Makes the views from ``first_view`` to ``views``, except view 0, of one image."""
    numbers = range(max(first_view, 1), views)
    seeds = view_seeds(base_seed, index, numbers, "image")
    spec = ImageSpec(size, size)
    (recipe or Simclr()).make(Poster(poster, kernels), spec, numbers, seeds, out)


def text_views(
    text: str,
    base_seed: int,
    index: int,
    views: int,
    first_view: int = 0,
    recipe: TextRecipe | None = None,
    texts: Sequence[str] = (),
) -> TextViews:
    """Draws the views from ``first_view`` to ``views`` of one text."""
    others = range(max(first_view, 1), views)
    seeds = view_seeds(base_seed, index, others, "text")
    has_clean = first_view == 0
    return (recipe or Mask()).draw(text, others, seeds, has_clean=has_clean, texts=texts)
