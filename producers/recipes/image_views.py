"""The image recipe: each backbone's clean view, and the augmented views that all of them share.

Views equal the paper's, pixel for pixel: torchvision's first-generation transforms of a PIL image,
seeded per view. ``producers.kernels`` implements the random draws and the pixel operations, so the
views need neither torch nor torchvision and do not depend on the installed Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestore.errors import BadSampleError
from featurestore.records import view_seed
from producers.decode import MAX_PIXELS
from producers.kernels import draws
from producers.kernels.draws import ViewDraws
from producers.kernels.exponential import exponential
from producers.kernels.implementations import Kernels, has_compiled, implementation

# Renamed whenever an augmented view changes, so that no store mixes two recipes.
IMAGE_RECIPE = "simclr-2"

# The filters that every implementation of the kernels has.
_KERNEL_FILTERS = (int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC))

# Pillow 12 resizes an image that is taller than this many times its width by rows first. No crop of
# an augmented view is that narrow.
_STRIP = 100

Pixels = NDArray[np.uint8]


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


def clean_view(
    poster: Image.Image, spec: ImageSpec, kernels: Kernels | None = None, prepared: Any = None
) -> Pixels:
    """View 0: the pixels of the backbone's image processor, before their conversion to floats.

    Args:
        poster: mode ``RGB``, of any size.
        spec: the processor's geometry.
        kernels: implementation of the operations; None chooses the fastest.
        prepared: result of ``kernels.prepare`` for the poster, if it was called already.

    Returns:
        uint8 [S, S, 3]; the margins of a poster that is smaller than S are black.

    Raises:
        BadSampleError: ``too-large``: the poster is so narrow that its resized form has too many
            pixels.
    """
    _check_rgb(poster)
    width, height = check_clean(poster, spec)
    if spec.resample not in _KERNEL_FILTERS:
        kernels, prepared = implementation(compiled_code=False), None
    kernels = kernels or fastest()
    if prepared is None:
        prepared = kernels.prepare(np.asarray(poster))
    box = (0, 0, *poster.size)
    if poster.height > _STRIP * poster.width and height < poster.height:
        rows = np.empty((3, height, poster.width), np.uint8)
        kernels.resize(prepared, box, spec.resample, False, rows)
        prepared = kernels.prepare(np.ascontiguousarray(rows.transpose(1, 2, 0)))
        box = (0, 0, poster.width, height)
    planes = np.empty((3, height, width), np.uint8)
    kernels.resize(prepared, box, spec.resample, False, planes)
    return _centre(planes, spec)


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


def augmented_views(
    poster: Image.Image,
    *,
    size: int,
    base_seed: int,
    index: int,
    views: int,
    out: Pixels,
    first_view: int = 0,
    kernels: Kernels | None = None,
    prepared: Any = None,
) -> None:
    """Compute the augmented views of one poster into ``out``, or only the last ones.

    Args:
        poster: mode ``RGB``, at full size.
        size: S, side of the views in pixels.
        base_seed: seed of the build.
        index: index of the sample.
        views: V, number of views including the clean one.
        out: uint8 [A, S, S, 3], overwritten with the augmented views from ``first_view`` on.
        first_view: index of the first view to compute; view 0 is clean, not augmented.
        kernels: implementation of the operations; None chooses the fastest.
        prepared: result of ``kernels.prepare`` for the poster, if it was called already.

    Raises:
        ValueError: the poster is not RGB, or ``out`` has another shape or dtype.
    """
    _check_rgb(poster)
    numbers = range(max(first_view, 1), views)
    expected = (len(numbers), size, size, 3)
    if out.shape != expected or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {expected}, got {out.dtype} {out.shape}")
    if not numbers:
        return
    kernels = kernels or fastest()
    if prepared is None:
        prepared = kernels.prepare(np.asarray(poster))
    seeds = [view_seed(base_seed, index, view, "image") for view in numbers]
    for drawn, view in zip(draws.draw(seeds, *poster.size), out, strict=True):
        apply(prepared, drawn, view, kernels)


def apply(prepared: Any, drawn: ViewDraws, out: Pixels, kernels: Kernels) -> None:
    """Compute one view from its random draws, in the paper's order of operations.

    Args:
        prepared: result of ``kernels.prepare`` for the poster.
        drawn: the draws of the view, for a poster of this size.
        out: uint8 [S, S, 3], overwritten with the view.
        kernels: implementation of the operations.
    """
    size = len(out)
    planes = np.empty((3, size, size), np.uint8)
    kernels.resize(prepared, drawn.box, int(Image.Resampling.BICUBIC), drawn.flip, planes)
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
        kernels.blur(planes, draws.blur_weights(drawn.sigma, draws.blur_taps(size)))
    kernels.interleave(planes, out)


def warm_up() -> None:
    """Read the table that the draws need, so that the first sample does not wait for it."""
    exponential()


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
