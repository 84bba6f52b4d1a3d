"""The random draws of a view: torch's random numbers, in the order of torchvision's transforms.

torch's generator is the Mersenne Twister, which numpy has too. Every draw takes one 32-bit word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from producers.kernels.exponential import exp, log, uniform

Box = tuple[int, int, int, int]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Range = tuple[float, float]

JITTER = ("brightness", "contrast", "saturation", "hue")
_TRIES = 10
# Ten crops that do not fit take twenty words, and all other draws together at most fourteen.
_WORDS = 2 * _TRIES + 2 + 12


@dataclass(frozen=True, slots=True)
class CropRanges:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the poster's.
        ratio: smallest and largest width divided by height of the crop.
        flip: probability that the view is mirrored.
    """

    scale: Range
    ratio: Range
    flip: float


@dataclass(frozen=True, slots=True)
class ColourRanges:
    """torchvision's ColorJitter, RandomGrayscale and GaussianBlur, each with a probability.

    Attributes:
        jitter: strength of brightness, contrast, saturation and hue. A factor of the first three is
            drawn from 1 - strength to 1 + strength, at least 0; a hue from -strength to strength.
        jitter_probability: probability of the jitter.
        gray: probability that the view is gray.
        blur: probability of the blur.
        sigma: smallest and largest standard deviation of the blur, in pixels of the view.
    """

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    gray: float
    blur: float
    sigma: Range


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
    jitter: tuple[tuple[str, float], ...] = ()
    gray: bool = False
    sigma: float | None = None


def draw(
    seeds: Sequence[int],
    width: int,
    height: int,
    crop: CropRanges,
    colour: ColourRanges | None = None,
) -> list[ViewDraws]:
    """Draw views of a poster of this size.

    Args:
        seeds: seed of each view, below 2³².
        width: width of the poster in pixels.
        height: height of the poster in pixels.
        crop: ranges of the crop and the probability of a mirrored view.
        colour: ranges and probabilities of the colours and the blur, which are drawn after them;
            None if there are none.
    """
    words = _words(seeds)
    # The words that are a crop's ratio if the tries before it did not fit.
    ratios = exp(uniform(words[:, 1 : 2 * _TRIES : 2], *map(log, crop.ratio)).astype(np.float32))
    bounds = _Bounds(crop, colour)
    return [
        bounds.view(iter(row), each, width, height)
        for row, each in zip(words.tolist(), ratios.tolist(), strict=True)
    ]


def words_of_crop(seed: int, width: int, height: int, crop: CropRanges) -> tuple[ViewDraws, int]:
    """The draws of one view's crop, and how many words of its generator they take."""
    words = _words([seed])
    ratios = exp(uniform(words[:, 1 : 2 * _TRIES : 2], *map(log, crop.ratio)).astype(np.float32))
    rest = iter(words[0].tolist())
    drawn = _Bounds(crop, None).view(rest, ratios[0].tolist(), width, height)
    return drawn, _WORDS - len(list(rest))


def blur_taps(size: int) -> int:
    """Number of taps of the blur: a tenth of the view as in SimCLR, made odd; 23 for 224 pixels."""
    return int(0.1 * size) // 2 * 2 + 1


def blur_weights(sigmas: Sequence[float], taps: int) -> Floats:
    """One-dimensional Gaussians with the sum 1, as torchvision computes them.

    Args:
        sigmas: standard deviations in pixels, float32 values above 0.
        taps: number of taps, odd.

    Returns:
        The weights, float32 [len(sigmas), taps].
    """
    at = np.arange(taps, dtype=np.float32) - np.float32(taps // 2)
    scaled = at / np.array(sigmas, np.float32)[:, None]
    weights = exp(np.float32(-0.5) * (scaled * scaled))
    normalised: Floats = weights / _sum_of_lanes(weights)[:, None]
    return normalised


def _words(seeds: Sequence[int]) -> Words:
    """The first words of the generator of each seed, uint32 [len(seeds), _WORDS]."""
    # One generator is seeded again for each view: creating one takes longer than all draws.
    generator = np.random.RandomState()
    words = np.empty((len(seeds), _WORDS), np.uint32)
    for row, seed in zip(words, seeds, strict=True):
        generator.seed(seed)
        row[:] = np.frombuffer(generator.bytes(4 * _WORDS), "<u4")
    return words


class _Bounds:
    """The ranges as torch and torchvision use them: float32, and factors instead of strengths."""

    def __init__(self, crop: CropRanges, colour: ColourRanges | None) -> None:
        self._scale = _float32(crop.scale)
        self._ratio = crop.ratio
        # Probabilities are rounded to float32 like the draws that are compared with them.
        self._flip = float(np.float32(crop.flip))
        self._colour = colour
        if colour is not None:
            self._jitter = {
                name: _float32(bounds)
                for name, strength in zip(JITTER, colour.jitter, strict=True)
                if (bounds := _factors(name, strength)) is not None
            }
            self._sigma = _float32(colour.sigma)
            self._shares = [
                float(np.float32(share))
                for share in (colour.jitter_probability, colour.gray, colour.blur)
            ]

    def view(
        self, words: Iterator[int], ratios: Sequence[float], width: int, height: int
    ) -> ViewDraws:
        """Draws one view from the words of its generator.

        Args:
            words: the words.
            ratios: the aspect ratio of each try of a crop.
            width: width of the poster in pixels.
            height: height of the poster in pixels.
        """
        box = self._crop(words, ratios, width, height)
        flip = _share(words) < self._flip
        if self._colour is None:
            return ViewDraws(box, flip)
        jitter_share, gray_share, blur_share = self._shares
        jitter: tuple[tuple[str, float], ...] = ()
        if _share(words) <= jitter_share:
            order = [JITTER[i] for i in _permutation(words, len(JITTER))]
            factors = {
                name: float(uniform(next(words), *bounds)) for name, bounds in self._jitter.items()
            }
            jitter = tuple((name, factors[name]) for name in order if name in factors)
        gray = _share(words) < gray_share
        blurred = _share(words) <= blur_share
        sigma = float(uniform(next(words), *self._sigma)) if blurred else None
        return ViewDraws(box, flip, jitter, gray, sigma)

    def _crop(self, words: Iterator[int], ratios: Sequence[float], width: int, height: int) -> Box:
        """Draws a crop: up to ten tries of an area and an aspect ratio, then the centre."""
        for ratio in ratios:
            area = height * width * float(uniform(next(words), *self._scale))
            next(words)  # that of the ratio
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = next(words) % (height - h + 1)
                left = next(words) % (width - w + 1)
                return left, top, w, h
        w, h = width, height
        # Where torchvision's crop would have no pixel, and so would fail, it has one.
        if width / height < self._ratio[0]:
            h = max(1, round(width / self._ratio[0]))
        elif width / height > self._ratio[1]:
            w = max(1, round(height * self._ratio[1]))
        return (width - w) // 2, (height - h) // 2, w, h


def _float32(bounds: Range) -> tuple[np.float32, np.float32]:
    return np.float32(bounds[0]), np.float32(bounds[1])


def _factors(name: str, strength: float) -> Range | None:
    """The range of a colour operation's factor; None if it changes nothing and is not drawn."""
    centre = 0.0 if name == "hue" else 1.0
    low, high = centre - strength, centre + strength
    if low == high:
        return None
    return (low, high) if name == "hue" else (max(low, 0.0), high)


def _share(words: Iterator[int]) -> float:
    """A uniform draw from [0, 1), exact in float32."""
    return (next(words) & 0xFFFFFF) * 2.0**-24


def _permutation(words: Iterator[int], size: int) -> list[int]:
    """The shuffle of ``torch.randperm``."""
    order = list(range(size))
    for i in range(size - 1):
        other = i + next(words) % (size - i)
        order[i], order[other] = order[other], order[i]
    return order


def _sum_of_lanes(values: Floats) -> Floats:
    """The sums of rows in torch's order, which determines the last bit and so is part of recipes.

    Groups of eight values are added lane by lane, four groups at a time. The remaining values are
    added one by one, then the lanes. Fewer than eight values are four lanes, of which the first one
    also takes the remaining ones.
    """
    rows, count = values.shape
    if count < 8:
        rest = range(count // 4 * 4, count)
        order = [*range(min(1, rest.start)), *rest, *range(1, rest.start)]
        return np.add.accumulate(values[:, order], axis=1)[:, -1]
    groups = values[:, : count // 8 * 8].reshape(rows, -1, 8)
    fours = groups.shape[1] // 4 * 4
    lanes = np.zeros((rows, 4, 8), np.float32)
    for start in range(0, fours, 4):
        lanes += groups[:, start : start + 4]
    for group in range(fours, groups.shape[1]):
        lanes[:, 0] += groups[:, group]
    together = lanes[:, 0] + lanes[:, 1] + lanes[:, 2] + lanes[:, 3]
    total = np.zeros(rows, np.float32)
    for value in (*values[:, count // 8 * 8 :].T, *together.T):
        total += value
    return total
