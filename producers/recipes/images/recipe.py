"""What every recipe of images does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featurestore.records import Modality
from producers.kernels.draws import ViewDraws
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster
from producers.recipes.recipe import Recipe


@dataclass(frozen=True)
class ImageRecipe(Recipe):
    """How the views of every image are made.

    Attributes:
        is_shared: whether all backbones of one size see the same pixels, except for view 0, so that
            they are made once. Otherwise views begin with each backbone's own clean view.
        draws_all: whether :meth:`draws` describes everything that is done to a view.
    """

    modality: ClassVar[Modality] = "image"
    is_shared: ClassVar[bool] = True
    draws_all: ClassVar[bool] = True

    @abstractmethod
    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes views of one poster.

        Args:
            poster: the poster.
            spec: the backbone's clean view; of a shared recipe only its size matters.
            views: indices of the views, without 0.
            seeds: seed of each view, below 2³².
            out: uint8 [len(views), S, S, 3], overwritten.

        Raises:
            ValueError: ``out`` has another shape or dtype.
        """

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws] | None:
        """The parameters of views of a poster of this size; None if the recipe does not draw them.

        Args:
            views: indices of the views, without 0.
            seeds: seed of each view, below 2³².
            width: width of the poster in pixels.
            height: height of the poster in pixels.
        """
        del views, seeds, width, height
        return None


def check_out(out: Pixels, views: Sequence[int], spec: ImageSpec) -> None:
    """Refuses an array of another shape or dtype: NumPy would broadcast or cast into it."""
    expected = (len(views), spec.size, spec.size, 3)
    if out.shape != expected or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {expected}, got {out.dtype} {out.shape}")
