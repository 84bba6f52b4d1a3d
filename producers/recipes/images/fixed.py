"""Recipes of a fixed number of views, without random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from producers.kernels.draws import ViewDraws
from producers.recipes.images.geometry import (
    ImageSpec,
    Pixels,
    Poster,
    check_clean,
    clean_view,
    resize,
)
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

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws]:
        """The mirrored whole image; see :class:`ImageRecipe`."""
        del seeds
        return [ViewDraws((0, 0, width, height), flip=True) for _ in views]


@dataclass(frozen=True)
class FiveCrop(ImageRecipe):
    """The clean view and the four corners: top left, top right, bottom left, bottom right.

    The corners are crops of the image whose shorter side was resized to 8/7 of the backbone's size,
    256 pixels for 224, as in torchvision's Resize and FiveCrop. The centre is not one of these
    crops but the backbone's own clean view.
    """

    name: ClassVar[str] = "fivecrop"
    version: ClassVar[int] = 1

    @property
    def fixed_views(self) -> int:
        """5."""
        return 5

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes the corners; see :class:`ImageRecipe`.

        Raises:
            BadSampleError: ``too-large``: the poster is so narrow that its resized form has too
                many pixels.
        """
        del seeds
        check_out(out, views, spec)
        whole = _enlarged(poster, spec.size)
        for view, pixels in zip(views, out, strict=True):
            pixels[...] = _corner(whole, spec.size, view)


@dataclass(frozen=True)
class TenCrop(ImageRecipe):
    """The five views of :class:`FiveCrop`, then their mirror images in the same order.

    View 5 is the mirror image of the clean view.
    """

    name: ClassVar[str] = "tencrop"
    version: ClassVar[int] = 1
    is_shared: ClassVar[bool] = False

    @property
    def fixed_views(self) -> int:
        """10."""
        return 10

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes the corners and the mirror images; see :class:`ImageRecipe`.

        Raises:
            BadSampleError: ``too-large``: the poster is so narrow that its resized form has too
                many pixels.
        """
        del seeds
        check_out(out, views, spec)
        whole = _enlarged(poster, spec.size)
        for view, pixels in zip(views, out, strict=True):
            at = view % 5
            made = _corner(whole, spec.size, at) if at else clean_view(poster, spec)
            pixels[...] = made[:, ::-1] if view >= 5 else made


def _enlarged(poster: Poster, size: int) -> Pixels:
    """The poster resized for corners of ``size`` pixels, uint8 [height, width, 3]."""
    spec = ImageSpec(size, shortest_edge=round(size * 8 / 7))
    width, height = check_clean(poster.image, spec)
    planes = np.empty((3, height, width), np.uint8)
    resize(poster, spec.resample, planes)
    return planes.transpose(1, 2, 0)


def _corner(whole: Pixels, size: int, number: int) -> Pixels:
    """A corner: 1 top left, 2 top right, 3 bottom left, 4 bottom right."""
    height, width, _ = whole.shape
    top = 0 if number in (1, 2) else height - size
    left = 0 if number in (1, 3) else width - size
    return whole[top : top + size, left : left + size]
