"""Draw views by each recipe of images as ``docs/recipes/NAME.jpg``.

    python tools/recipe_pictures.py docs/recipes

The image is ``chelsea`` of scikit-image, a photograph by Stefan van der Walt in the public domain
(CC0). A test compares the files with this program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from featurestore.records import view_seeds
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster, clean_view
from producers.recipes.images.presets import IMAGE_RECIPES
from producers.recipes.images.recipe import ImageRecipe

SIZE, VIEWS, SEED = 112, 10, 123
_GAP = 4
_PAPER = 255
_COLUMNS = 5


def picture(recipe: ImageRecipe) -> Pixels:
    """The clean view and the views that follow it, in rows of five; uint8 [height, width, 3]."""
    poster = Poster(Image.fromarray(skimage.data.chelsea()))  # type: ignore[no-untyped-call]
    spec = ImageSpec(SIZE, SIZE)
    others = range(1, recipe.fixed_views or VIEWS)
    views = np.empty((1 + len(others), SIZE, SIZE, 3), np.uint8)
    views[0] = clean_view(poster, spec)
    recipe.make(poster, spec, others, view_seeds(SEED, 0, others, "image"), views[1:])
    rows, step = -(-len(views) // _COLUMNS), SIZE + _GAP
    page = np.full((rows * step - _GAP, _COLUMNS * step - _GAP, 3), _PAPER, np.uint8)
    for number, view in enumerate(views):
        top, left = number // _COLUMNS * step, number % _COLUMNS * step
        page[top : top + SIZE, left : left + SIZE] = view
    return page


def main() -> None:
    """Writes a file for each recipe into the folder given as the only argument."""
    ensure_importable()
    for name, kind in IMAGE_RECIPES.items():
        Image.fromarray(picture(kind())).save(
            Path(sys.argv[1]) / f"{name}.jpg", quality=90, subsampling=0
        )


if __name__ == "__main__":
    main()
