"""Reads an image processor of any library by example, and checks the result.

The adapter of the library reads the geometry, which the producers apply; the arithmetic is a table
of 256 values per channel, computed by the processor itself. Both together are then compared with
the processor on whole images, so that unknown steps are detected.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from consumers.checkpoints.checkpoints import Checkpoint
from producers.recipes.images.geometry import ImageSpec, clean_view

# A portrait, a landscape and an image smaller than any model's input; odd sides reveal roundings.
_PROBES = ((301, 447), (383, 290), (61, 47))

Table = npt.NDArray[np.float32]
Process = Callable[[Image.Image], npt.NDArray[np.float32]]


def read_table(checkpoint: Checkpoint, scale: Process) -> Table:
    """The value of each channel and pixel level after scaling, float32 ``[3, 256]``.

    Args:
        checkpoint: the checkpoint, for messages.
        scale: the processor without resizing and cropping: maps an RGB image of ``[H, W]`` to
            float32 ``[3, H, W]``.

    Raises:
        ConfigError: ``scale`` returns another shape or dtype.
    """
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = scale(Image.fromarray(np.stack([grey] * 3, axis=2)))
    if values.shape != (3, 16, 16) or values.dtype != np.float32:
        raise _unsupported(checkpoint, f"gives {values.dtype} {list(values.shape)} for 16 x 16")
    return np.ascontiguousarray(values.reshape(3, 256))


def check_by_example(
    checkpoint: Checkpoint, image: ImageSpec, table: Table, process: Process, levels: float = 0
) -> None:
    """Compares geometry and table with the processor on three images.

    Args:
        checkpoint: the checkpoint, for messages.
        image: the geometry.
        table: the arithmetic, float32 ``[3, 256]``.
        process: the whole processor: maps an RGB image to float32 ``[3, S, S]``.
        levels: allowed difference in levels of a pixel, of which there are 256.

    Raises:
        ConfigError: the difference is larger.
    """
    level = abs(table[:, 255:] - table[:, :1])[:, None] / 255  # [3, 1, 1]
    rng = np.random.default_rng(0)
    for width, height in _PROBES:
        poster = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = process(poster)
        view = clean_view(poster, image)  # [S, S, 3]
        ours = np.stack([table[c][view[..., c]] for c in range(3)])
        if expected.shape != ours.shape:
            raise _unsupported(checkpoint, f"gives {list(expected.shape)}, we {list(ours.shape)}")
        same = abs(expected - ours) <= levels * level  # False for NaN
        if not same.all():
            share = float((~same).mean())
            raise _unsupported(checkpoint, f"differs from ours in {share:.1%} of the values")


def _unsupported(checkpoint: Checkpoint, problem: str) -> Exception:
    return checkpoint.error(f"has an image processor that is not reproduced: it {problem}")
