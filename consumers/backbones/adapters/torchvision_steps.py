"""The transforms of timm and open_clip, which are torchvision's: reads and tests them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.preprocessing.processors import Table, check_by_example, read_table
from producers.recipes.images.geometry import ImageSpec


def read_transform(
    checkpoint: Checkpoint,
    transform: Any,
    size: int,
    *,
    resized: int,
    squash: bool,
    interpolation: str,
) -> tuple[ImageSpec, Table]:
    """Reads the geometry and the arithmetic of a transform, and tests both on whole images.

    Args:
        checkpoint: for messages.
        transform: a ``Compose`` that ends in conversion to a tensor and normalisation.
        size: S, side of the resulting image in pixels.
        resized: length in pixels that it resizes to before it crops the centre.
        squash: whether both sides are resized to that length, or only the shorter one.
        interpolation: name of a Pillow filter, in lower case.

    Raises:
        ConfigError: the transform does something else.
    """
    resample = Image.Resampling.__members__.get(interpolation.upper())
    if resample is None:
        raise checkpoint.error(f"resizes its images by {interpolation!r}, which is unsupported")
    image = ImageSpec(
        size,
        None if squash else resized,
        int(resample),
        resized if squash and resized != size else None,
        rounded_centre=True,
    )

    def run(steps: Any, poster: Image.Image) -> npt.NDArray[np.float32]:
        for step in steps:
            poster = step(poster)
        return poster.numpy()  # type: ignore[attr-defined,no-any-return]  # the last makes a tensor

    with checkpoint.loading():
        table = read_table(checkpoint, lambda poster: run(transform.transforms[-2:], poster))
        check_by_example(checkpoint, image, table, lambda poster: run(transform.transforms, poster))
    return image, table
