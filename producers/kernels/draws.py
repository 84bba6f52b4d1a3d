"""The random draws of a view: torch's random numbers, in the order of the paper's transforms.

torch's generator is the Mersenne Twister, which numpy has too. Every draw takes one 32-bit word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from producers.kernels.exponential import exponential, uniform

Box = tuple[int, int, int, int]
Floats = npt.NDArray[np.float32]

JITTER = ("brightness", "contrast", "saturation", "hue")
_JITTER_BOUNDS = (*((np.float32(0.6), np.float32(1.4)),) * 3, (np.float32(-0.1), np.float32(0.1)))
_SCALE = (np.float32(0.08), np.float32(1.0))
_SIGMA = (np.float32(0.1), np.float32(2.0))
_RATIO = (3.0 / 4.0, 4.0 / 3.0)
# Shares of views, rounded to float32 like the draws that are compared with them.
_JITTER_SHARE = float(np.float32(0.8))
_GRAY_SHARE = float(np.float32(0.2))
_TRIES = 10
# Ten crops that do not fit take twenty words, and all other draws together at most fourteen.
_WORDS = 2 * _TRIES + 2 + 12


@dataclass(frozen=True, slots=True)
class ViewDraws:
    """The random draws of one view.

    Attributes:
        box: left, top, width and height of the crop, in pixels of the poster.
        flip: whether the view is mirrored.
        jitter: the colour operations with their factors, in the order of application.
        gray: whether the view is converted to gray.
        sigma: standard deviation of the blur in pixels of the view; None for no blur.
    """

    box: Box
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    sigma: float | None


def draw(seeds: Iterable[int], width: int, height: int) -> list[ViewDraws]:
    """Draw views of a poster of this size.

    Args:
        seeds: seed of each view, below 2³².
        width: width of the poster in pixels.
        height: height of the poster in pixels.
    """
    # One generator is seeded again for each view: creating one takes longer than all draws.
    generator = np.random.RandomState()
    drawn = []
    for seed in seeds:
        generator.seed(seed)
        words = np.frombuffer(generator.bytes(4 * _WORDS), "<u4")
        drawn.append(_view(iter(words.tolist()), width, height))
    return drawn


def blur_taps(size: int) -> int:
    """Number of taps of the blur: a tenth of the view as in SimCLR, made odd; 23 for 224 pixels."""
    return int(0.1 * size) // 2 * 2 + 1


def blur_weights(sigma: float, taps: int) -> Floats:
    """A one-dimensional Gaussian with the sum 1, as torchvision computes it.

    Args:
        sigma: standard deviation in pixels, a float32 value.
        taps: number of taps, odd.

    Returns:
        The weights, float32 [taps].
    """
    at = np.arange(taps, dtype=np.float32) - np.float32(taps // 2)
    scaled = at / np.float32(sigma)
    weights = exponential().weights(np.float32(-0.5) * (scaled * scaled))
    normalised: Floats = weights / _sum_of_lanes(weights)
    return normalised


def _view(words: Iterator[int], width: int, height: int) -> ViewDraws:
    """Draws one view from the words of its generator."""
    box = _crop(words, width, height)
    flip = _share(words) < 0.5
    jitter: tuple[tuple[str, float], ...] = ()
    if _share(words) <= _JITTER_SHARE:
        order = _permutation(words, len(JITTER))
        factors = [float(uniform(next(words), *bounds)) for bounds in _JITTER_BOUNDS]
        jitter = tuple((JITTER[i], factors[i]) for i in order)
    gray = _share(words) < _GRAY_SHARE
    sigma = float(uniform(next(words), *_SIGMA)) if _share(words) <= 0.5 else None
    return ViewDraws(box, flip, jitter, gray, sigma)


def _share(words: Iterator[int]) -> float:
    """A uniform draw from [0, 1), exact in float32."""
    return (next(words) & 0xFFFFFF) * 2.0**-24


def _crop(words: Iterator[int], width: int, height: int) -> Box:
    """Draws a crop: up to ten tries of an area and an aspect ratio, then the centre."""
    exp = exponential()
    for _ in range(_TRIES):
        area = height * width * float(uniform(next(words), *_SCALE))
        ratio = exp.ratio(next(words))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = next(words) % (height - h + 1)
            left = next(words) % (width - w + 1)
            return left, top, w, h
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def _permutation(words: Iterator[int], size: int) -> list[int]:
    """The shuffle of ``torch.randperm``."""
    order = list(range(size))
    for i in range(size - 1):
        other = i + next(words) % (size - i)
        order[i], order[other] = order[other], order[i]
    return order


def _sum_of_lanes(values: Floats) -> np.float32:
    """The sum in torch's order, which determines the last bit and so is part of the recipe.

    Groups of eight values are added lane by lane, four groups at a time. The remaining values are
    added one by one, then the lanes.
    """
    groups = values[: len(values) // 8 * 8].reshape(-1, 8)
    fours = len(groups) // 4 * 4
    lanes = np.zeros((4, 8), np.float32)
    for start in range(0, fours, 4):
        lanes += groups[start : start + 4]
    for group in groups[fours:]:
        lanes[0] += group
    total = np.float32(0)
    for value in (*values[groups.size :], *(lanes[0] + lanes[1] + lanes[2] + lanes[3])):
        total += value
    return total
