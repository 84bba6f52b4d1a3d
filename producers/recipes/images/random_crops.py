"""Recipes of random crops: torchvision's first-generation transforms of a PIL image, per view.

Views equal torchvision's pixel for pixel, whatever the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from featurestore.errors import ConfigError
from producers.kernels import draws
from producers.kernels.draws import ColourRanges, CropRanges, Floats, Range, ViewDraws
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster
from producers.recipes.images.recipe import ImageRecipe, check_out
from producers.recipes.recipe import require_ascending, require_share

# The published ranges of a crop's area and of its width divided by its height.
_SCALE, _RATIO = (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0)
# A crop of more than 100 rows per column would be resized by Pillow in another order. With these
# limits it has at most 75, because its sides are rounded to whole pixels.
_RATIOS = (0.02, 50.0)
# Numbers beyond these serve no purpose, and float32 could overflow.
_STRENGTH, _SIGMAS = 1000.0, (0.001, 1000.0)


@dataclass(frozen=True)
class RandomCrops(ImageRecipe):
    """Views that are made of a random crop each."""

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes views; see :class:`ImageRecipe`."""
        check_out(out, views, spec)
        drawn = self.draws(views, seeds, *poster.image.size)
        taps = draws.blur_taps(spec.size)
        sigmas = [each.sigma for each in drawn if each.sigma is not None]
        weights = iter(draws.blur_weights(sigmas, taps)) if sigmas else iter(())
        for each, view in zip(drawn, out, strict=True):
            apply(poster, each, view, next(weights) if each.sigma is not None else None)

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws]:
        """The parameters of views; see :class:`ImageRecipe`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Crop(RandomCrops):
    """A random crop and a mirrored half: torchvision's RandomResizedCrop, RandomHorizontalFlip.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width divided by height of the crop, from 0.02 to 50.
        flip: probability that a view is mirrored.
    """

    name: ClassVar[str] = "crop"
    version: ClassVar[int] = 1

    scale: Range = _SCALE
    ratio: Range = _RATIO
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value is out of range.
        """
        require_ascending(self, "scale", 1.0)
        require_ascending(self, "ratio", _RATIOS[1], least=_RATIOS[0])
        require_share(self, "flip")

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws]:
        """The parameters of views; see :class:`ImageRecipe`."""
        del views
        return draws.draw(seeds, width, height, CropRanges(self.scale, self.ratio, self.flip))


@dataclass(frozen=True)
class Simclr(Crop):
    """SimCLR's views as published: a crop, changed colours, gray, and a blur.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width divided by height of the crop, from 0.02 to 50.
        flip: probability that a view is mirrored.
        jitter: strength of brightness, contrast, saturation and hue; the hue's at most 0.5, the
            others' at most 1000.
        jitter_probability: probability that colours change.
        gray: probability that a view is gray.
        blur: probability that a view is blurred.
        sigma: smallest and largest standard deviation of the blur, in pixels of the view, from
            0.001 to 1000.
    """

    name: ClassVar[str] = "simclr"
    version: ClassVar[int] = 2

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    sigma: Range = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value is out of range.
        """
        super().__post_init__()
        for name in ("jitter_probability", "gray", "blur"):
            require_share(self, name)
        require_ascending(self, "sigma", _SIGMAS[1], least=_SIGMAS[0])
        most = (_STRENGTH, _STRENGTH, _STRENGTH, 0.5)
        if not all(0 <= each <= limit for each, limit in zip(self.jitter, most, strict=True)):
            raise ConfigError(
                "[recipe.image] jitter is the strength of brightness, contrast, saturation and "
                f"hue, from 0 to {_STRENGTH:g}, of hue at most 0.5; found {list(self.jitter)}."
            )

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws]:
        """The parameters of views; see :class:`ImageRecipe`."""
        del views
        crop = CropRanges(self.scale, self.ratio, self.flip)
        colour = ColourRanges(
            self.jitter, self.jitter_probability, self.gray, self.blur, self.sigma
        )
        return draws.draw(seeds, width, height, crop, colour)


@dataclass(frozen=True)
class Multicrop(RandomCrops):
    """DINO's crops: a few large ones and many small ones, all resized to the backbone's size.

    The first views after the clean one are the large, global crops; all others are local ones.

    Attributes:
        global_crops: number of global crops, views 1 to ``global_crops``.
        global_scale: smallest and largest area of a global crop, as a share of the image's.
        local_scale: smallest and largest area of a local crop, as a share of the image's.
        ratio: smallest and largest width divided by height of a crop, from 0.02 to 50.
        flip: probability that a view is mirrored.
    """

    name: ClassVar[str] = "multicrop"
    version: ClassVar[int] = 1

    global_crops: int = 2
    global_scale: Range = (0.4, 1.0)
    local_scale: Range = (0.05, 0.4)
    ratio: Range = _RATIO
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.global_crops < 0:
            raise ConfigError(
                f"[recipe.image] global_crops is at least 0, found {self.global_crops}."
            )
        require_ascending(self, "global_scale", 1.0)
        require_ascending(self, "local_scale", 1.0)
        require_ascending(self, "ratio", _RATIOS[1], least=_RATIOS[0])
        require_share(self, "flip")

    def draws(
        self, views: Sequence[int], seeds: Sequence[int], width: int, height: int
    ) -> list[ViewDraws]:
        """The parameters of views; see :class:`ImageRecipe`."""
        drawn: dict[int, ViewDraws] = {}
        are_global = [view <= self.global_crops for view in views]
        for kind, scale in ((True, self.global_scale), (False, self.local_scale)):
            chosen = [i for i, is_global in enumerate(are_global) if is_global is kind]
            if not chosen:
                continue
            ranges = CropRanges(scale, self.ratio, self.flip)
            found = draws.draw([seeds[i] for i in chosen], width, height, ranges)
            drawn |= zip(chosen, found, strict=True)
        return [drawn[i] for i in range(len(views))]


def apply(poster: Poster, drawn: ViewDraws, out: Pixels, weights: Floats | None = None) -> None:
    """Makes one view from its random draws, in the order of the published recipe.

    Args:
        poster: the poster.
        drawn: the draws of the view, for a poster of this size.
        out: uint8 [S, S, 3], overwritten with the view.
        weights: float32 [taps], those of the blur; None to compute them.
    """
    size, kernels = len(out), poster.kernels
    planes = np.empty((3, size, size), np.uint8)
    resample = int(Image.Resampling.BICUBIC)
    kernels.resize(poster.prepared, drawn.box, resample, drawn.flip, planes)
    change_colour = {
        "brightness": kernels.brightness,
        "contrast": kernels.contrast,
        "saturation": kernels.saturation,
        "hue": kernels.hue,
    }
    for name, factor in drawn.jitter:
        change_colour[name](planes, factor)
    if drawn.gray:
        kernels.gray(planes)
    if drawn.sigma is not None:
        if weights is None:
            (weights,) = draws.blur_weights([drawn.sigma], draws.blur_taps(size))
        kernels.blur(planes, weights)
    kernels.interleave(planes, out)
