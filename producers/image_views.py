"""The image recipe: each backbone's clean view, and the augmented views that all of them share.

Views are the paper's, pixel for pixel: torchvision's first-generation transforms on a PIL image,
seeded per view. torch and torchvision are imported when the first view is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestore.errors import BadSampleError
from featurestore.seeds import view_seed
from featurestore.torchvision_ops import ensure_importable
from producers.decode import MAX_PIXELS

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How one image processor makes its clean view; read from the checkpoint's own configuration.

    Attributes:
        size: S, the side of the square view.
        shortest_edge: resize the shorter side to this, then cut the centre S x S (CLIP); None
            resizes to S x S whatever the shape (BLIP-2).
        resample: the value of a ``PIL.Image.Resampling``, 3 for bicubic.
    """

    size: int
    shortest_edge: int | None
    resample: int = int(Image.Resampling.BICUBIC)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) that a poster is resized to, before any crop."""
        if self.shortest_edge is None:
            return self.size, self.size
        # Truncated, not rounded, as transformers does; (edge * long) / short in this order.
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        if width <= height:
            return self.shortest_edge, long
        return long, self.shortest_edge


def clean_view(poster: Image.Image, spec: ImageSpec) -> Pixels:
    """View 0: what the backbone's own processor makes of the poster, before scaling to floats.

    Args:
        poster: mode ``RGB``, of any size.
        spec: the processor's geometry.

    Returns:
        uint8 [S, S, 3]; parts that a small poster does not reach are black.

    Raises:
        BadSampleError: ``too-large``, a strip so thin that its resized form would not fit.
    """
    _check_rgb(poster)
    width, height = spec.resized(*poster.size)
    if width * height > MAX_PIXELS:
        detail = f"{poster.width} x {poster.height} would be resized to {width} x {height}"
        raise BadSampleError("too-large", detail)
    resized = poster.resize((width, height), resample=spec.resample)
    if resized.size != (spec.size, spec.size):
        left, top = (width - spec.size) // 2, (height - spec.size) // 2
        resized = resized.crop((left, top, left + spec.size, top + spec.size))
    return np.asarray(resized)


def augmented_views(
    poster: Image.Image, *, size: int, base_seed: int, index: int, views: int, out: Pixels
) -> None:
    """Make views 1..V-1 of one poster in place; the caller's random state is left as it was.

    Args:
        poster: mode ``RGB``, at full size.
        size: S, the side of the views.
        base_seed: the build's seed.
        index: the sample's index.
        views: V, the number of views with the clean one.
        out: uint8 [V-1, S, S, 3], overwritten; row v-1 is view v.

    Raises:
        ValueError: the poster is not RGB, or ``out`` is not of this shape and dtype.
    """
    _check_rgb(poster)
    expected = (views - 1, size, size, 3)
    if out.shape != expected or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {expected}, got {out.dtype} {out.shape}")
    recipe = _recipe(size)
    with _seedable() as seed:
        for view in range(1, views):
            seed(view_seed(base_seed, index, view, "image"))
            out[view - 1] = np.asarray(recipe(poster))


def warm_up(sizes: Iterable[int]) -> None:
    """Import torch and set up the recipe for views of these sizes, so that no sample waits."""
    for size in sizes:
        _recipe(size)


def blur_kernel(size: int) -> int:
    """Side of the Gaussian kernel: a tenth of the view, as in SimCLR, made odd; 23 at 224."""
    return int(0.1 * size) // 2 * 2 + 1


@cache
def _recipe(size: int) -> Callable[[Image.Image], Image.Image]:
    """The paper's transforms for views of ``size`` pixels."""
    ensure_importable()
    from torchvision import transforms as tv

    jitter = tv.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    blur = tv.GaussianBlur(blur_kernel(size), sigma=(0.1, 2.0))
    bicubic = tv.InterpolationMode.BICUBIC
    recipe: Callable[[Image.Image], Image.Image] = tv.Compose(
        [
            tv.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=bicubic),
            tv.RandomHorizontalFlip(p=0.5),
            tv.RandomApply([jitter], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([blur], p=0.5),
        ]
    )
    return recipe


@contextmanager
def _seedable() -> Iterator[Callable[[int], object]]:
    """Lend out the seeding of torch's CPU generator; its state is put back at the end.

    The generator is seeded directly: ``torch.manual_seed`` gives the same stream but visits every
    device first, which takes 150 times as long.
    """
    import torch

    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator.manual_seed
    finally:
        generator.set_state(state)


def _check_rgb(poster: Image.Image) -> None:
    """Refuse an image that ``decode.image`` did not make."""
    if poster.mode != "RGB":
        raise ValueError(f"a poster must be RGB, got mode {poster.mode}")
