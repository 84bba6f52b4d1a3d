"""Float32 to the shorter dtypes, rounded to the nearest, and never to infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def narrow(
    rows: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[Any], tuple[int, ...] | None]:
    """Rounds finite values to ``dtype``, ties to even.

    Args:
        rows: float32, finite.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Returns:
        The values, bfloat16 as its bits in uint16, which NumPy has no dtype for; and the position
        of the first value that became infinite, or None.
    """
    if dtype == "float32":
        return rows, None
    if dtype == "float16":
        with np.errstate(over="ignore"):
            short: npt.NDArray[Any] = rows.astype(np.float16)
        infinite = np.isinf(short)
    else:
        bits = np.ascontiguousarray(rows).view(np.uint32)
        # The upper half, one more where the lower half is above its middle, or at it and odd.
        short = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        infinite = (short & 0x7F80) == 0x7F80
    if not infinite.any():
        return short, None
    position = np.unravel_index(int(infinite.argmax()), infinite.shape)
    return short, tuple(int(i) for i in position)
