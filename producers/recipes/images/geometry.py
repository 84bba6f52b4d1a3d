"""The clean view of an image: the pixels that a backbone's own image processor makes.

``producers.kernels`` implements the pixel operations, so that views need neither torch nor
torchvision and do not depend on the installed Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestore.errors import BadSampleError
from producers.decode import MAX_PIXELS
from producers.kernels.implementations import Kernels, has_compiled, implementation

# The filters that every implementation of the kernels has.
_KERNEL_FILTERS = (int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC))

# Pillow 12 resizes an image that is taller than this many times its width by rows first.
_STRIP = 100

Pixels = NDArray[np.uint8]


class Poster:
    """A decoded image, and its form for the kernels, which is made once for all of its views.

    Attributes:
        image: mode ``RGB``, at full size.
        kernels: implementation of the pixel operations.
    """

    def __init__(self, image: Image.Image, kernels: Kernels | None = None) -> None:
        """Takes an image.

        Args:
            image: the image.
            kernels: implementation of the pixel operations; None chooses the fastest.

        Raises:
            ValueError: the image is not RGB.
        """
        _check_rgb(image)
        self.image = image
        self.kernels = kernels or fastest()

    @cached_property
    def prepared(self) -> Any:
        """The image as ``kernels.resize`` takes it."""
        return self.kernels.prepare(np.asarray(self.image))


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The geometry of an image processor's clean view, read from the checkpoint's configuration.

    Attributes:
        size: S, side of the square view in pixels.
        shortest_edge: length in pixels that the shorter side is resized to, before the centre S x S
            is cropped (CLIP); None resizes to a square, ignoring the aspect ratio (BLIP-2).
        resample: value of a ``PIL.Image.Resampling``, 3 for bicubic.
        squash: without a shortest edge, side of that square in pixels, of which the centre S x S is
            cropped (DeiT); None means S.
        rounded_centre: whether half of an odd margin around the centre is rounded to the nearest
            even number, as torchvision does, and not down, as transformers does.
    """

    size: int
    shortest_edge: int | None
    resample: int = int(Image.Resampling.BICUBIC)
    squash: int | None = None
    rounded_centre: bool = False

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in pixels that a poster is resized to, before any crop."""
        if self.shortest_edge is None:
            side = self.squash or self.size
            return side, side
        # Truncated, not rounded, as transformers does; (edge * long) / short in this order.
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        if width <= height:
            return self.shortest_edge, long
        return long, self.shortest_edge


def clean_view(poster: Image.Image | Poster, spec: ImageSpec) -> Pixels:
    """View 0: the pixels of the backbone's image processor, before their conversion to floats.

    Args:
        poster: mode ``RGB``, of any size.
        spec: the processor's geometry.

    Returns:
        uint8 [S, S, 3]; the margins of a poster that is smaller than S are black.

    Raises:
        BadSampleError: ``too-large``: the poster is so narrow that its resized form has too many
            pixels.
    """
    source = poster if isinstance(poster, Poster) else Poster(poster)
    width, height = check_clean(source.image, spec)
    planes = np.empty((3, height, width), np.uint8)
    resize(source, spec.resample, planes)
    return _centre(planes, spec)


def resize(poster: Poster, resample: int, planes: Pixels) -> None:
    """Resizes a whole poster as the installed Pillow does.

    Args:
        poster: the poster.
        resample: value of a ``PIL.Image.Resampling``.
        planes: uint8 [3, height, width], overwritten.
    """
    if resample not in _KERNEL_FILTERS:
        poster = Poster(poster.image, implementation(compiled_code=False))
    height = planes.shape[1]
    kernels, prepared, size = poster.kernels, poster.prepared, poster.image.size
    if size[1] > _STRIP * size[0] and height < size[1]:
        rows = np.empty((3, height, size[0]), np.uint8)
        kernels.resize(prepared, (0, 0, *size), resample, False, rows)
        prepared = kernels.prepare(np.ascontiguousarray(rows.transpose(1, 2, 0)))
        size = size[0], height
    kernels.resize(prepared, (0, 0, *size), resample, False, planes)


def check_clean(poster: Image.Image, spec: ImageSpec) -> tuple[int, int]:
    """The (width, height) that a poster is resized to for its clean view.

    Raises:
        BadSampleError: ``too-large``: the poster is so narrow that its resized form has too many
            pixels.
    """
    width, height = spec.resized(*poster.size)
    if width * height > MAX_PIXELS:
        detail = f"{poster.width} x {poster.height} would be resized to {width} x {height}"
        raise BadSampleError("too-large", detail)
    return width, height


def fastest() -> Kernels:
    """The C kernels if they were built, or those of Pillow and numpy."""
    return implementation(compiled_code=has_compiled())


def _centre(planes: Pixels, spec: ImageSpec) -> Pixels:
    """The centre of planes [3, height, width] as uint8 [S, S, 3]; margins are black."""
    size = spec.size
    view = np.zeros((size, size, 3), np.uint8)
    margins = [side - size for side in planes.shape[1:]]
    # Also for negative margins, // rounds down, and round() rounds halves to even.
    top, left = (round(m / 2) if spec.rounded_centre else m // 2 for m in margins)
    rows, columns = (slice(max(at, 0), at + size) for at in (top, left))
    part = planes[:, rows, columns].transpose(1, 2, 0)
    y, x = max(-top, 0), max(-left, 0)
    view[y : y + part.shape[0], x : x + part.shape[1]] = part
    return view


def _check_rgb(poster: Image.Image) -> None:
    """Refuse an image of another mode than ``decode.image`` returns."""
    if poster.mode != "RGB":
        raise ValueError(f"a poster must be RGB, got mode {poster.mode}")
