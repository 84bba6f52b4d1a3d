"""An image processor of any library, taken apart by example.

Its geometry is read by the adapter that knows the library and made by the producers; its arithmetic
is a table of 256 values per channel, read off the processor itself. That both together are what the
processor does is then checked on whole posters: a step that nobody knew of is found, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from consumers.checkpoints.checkpoints import Checkpoint
from producers.recipes.image_views import ImageSpec, clean_view

# A poster, a landscape and one smaller than any model's input; odd sides tell roundings apart.
_PROBES = ((301, 447), (383, 290), (61, 47))

Table = npt.NDArray[np.float32]
Process = Callable[[Image.Image], npt.NDArray[np.float32]]


def read_table(checkpoint: Checkpoint, scale: Process) -> Table:
    """The value that each channel and pixel value becomes, float32 ``[3, 256]``.

    Args:
        checkpoint: for messages.
        scale: the processor's arithmetic without its resizing and cropping: an RGB image of
            ``[H, W]`` to float32 ``[3, H, W]``.

    Raises:
        ConfigError: it does something else.
    """
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = scale(Image.fromarray(np.stack([grey] * 3, axis=2)))
    if values.shape != (3, 16, 16) or values.dtype != np.float32:
        raise _unsupported(checkpoint, f"gives {values.dtype} {list(values.shape)} for 16 x 16")
    return np.ascontiguousarray(values.reshape(3, 256))


def check_by_example(
    checkpoint: Checkpoint, image: ImageSpec, table: Table, process: Process, levels: float = 0
) -> None:
    """Compares what producers and table make of three posters with what the processor makes.

    Args:
        checkpoint: for messages.
        image: the geometry.
        table: the arithmetic.
        process: the whole processor: an RGB image to float32 ``[3, S, S]``.
        levels: by how many of a pixel's 256 values they may differ.

    Raises:
        ConfigError: they differ by more.
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
