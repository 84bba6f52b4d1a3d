"""The pixel operations with Pillow and numpy, for installations without the C extension.

The interface and the results are those of the extension, to the last bit, at a fraction of the
speed. Each operation is Pillow's own, which defines the recipe; only the blur is that of torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

Box = tuple[int, int, int, int]
Planes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Maximum relative error of one rounding to float32.
_UNIT = 2.0**-24


def prepare(poster: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns the poster unchanged."""
    return poster


def resize(
    poster: npt.NDArray[np.uint8], box: Box, filter: int, mirrored: bool, planes: Planes
) -> None:
    """Resizes a box of the poster, first its columns as in Pillow ≤ 12, and may mirror it."""
    left, top, width, height = box
    part = np.ascontiguousarray(poster[top : top + height, left : left + width])
    columns, rows = planes.shape[2], planes.shape[1]
    across = Image.fromarray(part).resize((columns, height), Image.Resampling(filter))
    resized = across.resize((columns, rows), Image.Resampling(filter))
    _store(ImageOps.mirror(resized) if mirrored else resized, planes)


def brightness(planes: Planes, factor: float) -> None:
    """Blends with black."""
    _store(ImageEnhance.Brightness(_image(planes)).enhance(factor), planes)


def contrast(planes: Planes, factor: float) -> None:
    """Blends with the mean gray."""
    _store(ImageEnhance.Contrast(_image(planes)).enhance(factor), planes)


def saturation(planes: Planes, factor: float) -> None:
    """Blends with the gray image."""
    _store(ImageEnhance.Color(_image(planes)).enhance(factor), planes)


def hue(planes: Planes, factor: float) -> None:
    """Rotates the hue by ``factor`` of the full circle."""
    hsv = np.array(_image(planes).convert("HSV"))
    hsv[..., 0] += np.int32(factor * 255).astype(np.uint8)  # hues are modulo 256
    _store(Image.frombuffer("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"), planes)


def gray(planes: Planes) -> None:
    """Sets all three planes to the luma."""
    planes[...] = np.asarray(_image(planes).convert("L"))


def blur(planes: Planes, weights: Floats) -> None:
    """Blurs each plane, reflected at its edges, as torch's convolution does; see ``blur.c``.

    Two one-dimensional passes in double precision give all values, except those so close to a half
    that the roundings of torch's sum may matter; these are summed in torch's order.
    """
    radius = len(weights) // 2
    square = np.outer(weights, weights)  # float32, each product rounded
    edges = ((0, 0), (radius, radius), (radius, radius))
    padded = np.pad(planes, edges, "reflect").astype(np.float64)
    smooth = _pass(_pass(padded, weights, axis=2), weights, axis=1)
    whole = np.floor(smooth)
    result = whole + (smooth - whole > 0.5)
    doubtful = np.nonzero(np.abs(smooth - whole - 0.5) <= _doubt(square))
    result[doubtful] = np.rint(_sums_by_the_rule(padded, square, doubtful))
    planes[...] = result


def interleave(planes: Planes, pixels: npt.NDArray[np.uint8]) -> None:
    """Copies planes to pixels, uint8 ``[height, width, 3]``."""
    pixels[...] = planes.transpose(1, 2, 0)


def _image(planes: Planes) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _store(image: Image.Image, planes: Planes) -> None:
    planes[...] = np.asarray(image).transpose(2, 0, 1)


def _pass(values: Doubles, weights: Floats, axis: int) -> Doubles:
    """One pass of the blur along ``axis``, which loses its padding."""
    length = values.shape[axis] - len(weights) + 1
    total: Doubles = np.zeros(())
    for k, weight in enumerate(weights.tolist()):
        part = values[:, k : k + length] if axis == 1 else values[:, :, k : k + length]
        total = total + part * weight
    return total


def _doubt(square: Floats) -> float:
    """Maximum difference of torch's sum from the exact one; ``blur.c`` derives it."""
    flat = square.ravel().astype(np.float64)
    rule = np.minimum(flat, _UNIT * np.cumsum(flat)).sum()
    return float(1.1 * 255 * (rule + _UNIT))


def _sums_by_the_rule(padded: Doubles, square: Floats, at: tuple[Any, ...]) -> Floats:
    """Sums by fused multiply-adds in float32, over the rows and columns of ``square`` in order."""
    plane, top, left = at
    sums = np.zeros(len(plane), np.float32)
    for (i, j), weight in np.ndenumerate(square):
        product = padded[plane, top + i, left + j] * float(weight)  # exact: 8 bits by 24
        sums = _sum_rounded_once(sums.astype(np.float64), product)
    return sums


def _sum_rounded_once(a: Doubles, b: Doubles) -> Floats:
    """The float32 nearest to the exact sum of nonnegative values.

    Rounding to double first could create a tie. Therefore an inexact double is rounded to odd,
    which keeps it on its side of the tie.
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = total.view(np.int64)
    inexact_and_even = (error != 0) & (bits & 1 == 0)
    bits = bits + np.where(error > 0, 1, -1) * inexact_and_even
    rounded: Floats = bits.view(np.float64).astype(np.float32)
    return rounded
