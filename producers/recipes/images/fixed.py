"""Recipes of a fixed number of views, without random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from producers.recipes.images.geometry import ImageSpec, Pixels, Poster, clean_view
from producers.recipes.images.recipe import ImageRecipe, check_out


@dataclass(frozen=True)
class CleanImage(ImageRecipe):
    """The clean view alone."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1

    @property
    def fixed_views(self) -> int:
        """1."""
        return 1

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes nothing: there is no view beside the clean one."""
        del poster, seeds
        assert not views, views
        check_out(out, views, spec)


@dataclass(frozen=True)
class Flip(ImageRecipe):
    """The clean view and its mirror image."""

    name: ClassVar[str] = "flip"
    version: ClassVar[int] = 1
    is_shared: ClassVar[bool] = False

    @property
    def fixed_views(self) -> int:
        """2."""
        return 2

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes the mirror image; see :class:`ImageRecipe`."""
        del seeds
        check_out(out, views, spec)
        for _ in views:
            out[:] = clean_view(poster, spec)[:, ::-1]
