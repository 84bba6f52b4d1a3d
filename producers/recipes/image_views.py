"""The image recipe: each backbone's clean view, and the augmented views that all of them share.

Views are the paper's, pixel for pixel: torchvision's first-generation transforms on a PIL image,
seeded per view. What is drawn and what is done to pixels is written out in ``producers.kernels``,
so neither torch nor torchvision is needed, nor does the installed Pillow matter.
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

# The filters that every implementation of the kernels has.
_KERNEL_FILTERS = (int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC))

# Pillow 12 resizes a strip that is taller than this many times its width by rows first. No crop of
# an augmented view is one.
_STRIP = 100

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How one image processor makes its clean view; read from the checkpoint's own configuration.

    Attributes:
        size: S, the side of the square view.
        shortest_edge: resize the shorter side to this, then cut the centre S x S (CLIP); None
            resizes to a square whatever the shape (BLIP-2).
        resample: the value of a ``PIL.Image.Resampling``, 3 for bicubic.
        squash: without a shortest edge, the side of that square, of which the centre S x S is cut
            (DeiT); None is S.
        rounded_centre: where the margin around the centre is odd, round half of it to the nearest
            even number, as torchvision does; transformers rounds it down.
    """

    size: int
    shortest_edge: int | None
    resample: int = int(Image.Resampling.BICUBIC)
    squash: int | None = None
    rounded_centre: bool = False

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) that a poster is resized to, before any crop."""
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
    """View 0: what the backbone's own processor makes of the poster, before scaling to floats.

    Args:
        poster: mode ``RGB``, of any size.
        spec: the processor's geometry.
        kernels: what resizes; None chooses the fastest.
        prepared: the poster by ``kernels.prepare``, where that was done already.

    Returns:
        uint8 [S, S, 3]; parts that a small poster does not reach are black.

    Raises:
        BadSampleError: ``too-large``, a strip so thin that its resized form would not fit.
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
        BadSampleError: ``too-large``, a strip so thin that its resized form would not fit.
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
    """Make the augmented views of one poster in place, or the last of them.

    Args:
        poster: mode ``RGB``, at full size.
        size: S, the side of the views.
        base_seed: the build's seed.
        index: the sample's index.
        views: V, the number of views with the clean one.
        out: uint8 [A, S, S, 3], overwritten with the A augmented views among those that are made.
        first_view: the first view that is made; the clean one, 0, is not an augmented one.
        kernels: what makes the pixels; None chooses the fastest.
        prepared: the poster by ``kernels.prepare``, where that was done already.

    Raises:
        ValueError: the poster is not RGB, or ``out`` is not of this shape and dtype.
    """
    _check_rgb(poster)
    made = range(max(first_view, 1), views)
    expected = (len(made), size, size, 3)
    if out.shape != expected or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {expected}, got {out.dtype} {out.shape}")
    if not made:
        return
    kernels = kernels or fastest()
    if prepared is None:
        prepared = kernels.prepare(np.asarray(poster))
    seeds = [view_seed(base_seed, index, view, "image") for view in made]
    for drawn, view in zip(draws.draw(seeds, *poster.size), out, strict=True):
        apply(prepared, drawn, view, kernels)


def apply(prepared: Any, drawn: ViewDraws, out: Pixels, kernels: Kernels) -> None:
    """Make one view: what was drawn, done in the paper's order.

    Args:
        prepared: the poster, by ``kernels.prepare``.
        drawn: for a poster of this size.
        out: uint8 [S, S, 3], overwritten.
        kernels: what makes the pixels.
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
    """Read the table that draws need, so that no sample waits for it."""
    exponential()


def fastest() -> Kernels:
    """The C kernels where they were built, else the libraries'."""
    return implementation(compiled_code=has_compiled())


def _centre(planes: Pixels, spec: ImageSpec) -> Pixels:
    """The centre of planes [3, height, width] as uint8 [S, S, 3], black where there is none."""
    size = spec.size
    view = np.zeros((size, size, 3), np.uint8)
    margins = [side - size for side in planes.shape[1:]]
    # Floored whichever of both is larger; Python's round goes to the even one of two neighbours.
    top, left = (round(m / 2) if spec.rounded_centre else m // 2 for m in margins)
    rows, columns = (slice(max(at, 0), at + size) for at in (top, left))
    part = planes[:, rows, columns].transpose(1, 2, 0)
    y, x = max(-top, 0), max(-left, 0)
    view[y : y + part.shape[0], x : x + part.shape[1]] = part
    return view


def _check_rgb(poster: Image.Image) -> None:
    """Refuse an image that ``decode.image`` did not make."""
    if poster.mode != "RGB":
        raise ValueError(f"a poster must be RGB, got mode {poster.mode}")
