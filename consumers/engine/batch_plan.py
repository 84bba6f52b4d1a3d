"""Which rows of a chunk share a forward pass: a pure function of the chunk.

The last bits of a text's features depend on the batch that it is in, so a byte-identical rebuild
needs the same batches: batches never span chunks and never depend on the order of arrival.
Importing this module does not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]

# Number of short texts that may replace one text of the maximum length in a batch. A larger number
# gains little for texts of 64 tokens or fewer of 512, and this one bounds the memory per batch.
SHORT = 8
# On a GPU, lengths of texts are rounded up to a multiple of this number of tokens: matrix products
# and attention read 16 bytes at once, and attention copies masks of other lengths.
_MULTIPLE = 8
# Renamed whenever other rows or lengths share a forward pass, or a GPU computes one in another way,
# so that no store mixes two plans.
_PLANS = {"tokens-1": 1, f"tokens-2-by-{_MULTIPLE}": _MULTIPLE}


@dataclass(frozen=True, slots=True)
class TextBatch:
    """One forward pass over texts.

    Attributes:
        rows: indices of the chunk's rows in the batch.
        length: padded length of each text, in tokens.
    """

    rows: tuple[int, ...]
    length: int


def batch_plan(device: str, stored: str = "") -> str:
    """The name of the batch plan, as recorded in the fingerprint.

    Args:
        device: ``cpu`` or ``cuda:N``.
        stored: the plan in the fingerprint of the store to continue, which may have been built on
            another device; it is used if it is known.
    """
    if stored in _PLANS:
        return stored
    own = own_multiple(device)
    return next(name for name, multiple in _PLANS.items() if multiple == own)


def plan_multiple(plan: str) -> int:
    """The number of tokens to a multiple of which a plan rounds lengths up."""
    return _PLANS[plan]


def own_multiple(device: str) -> int:
    """The multiple, in tokens, that lengths are rounded up to on a device."""
    return _MULTIPLE if device.startswith("cuda") else 1


def image_plan(rows: int, batch: int) -> list[slice]:
    """Batches of a chunk's images: consecutive rows in order; the last batch may be shorter."""
    return [slice(start, min(start + batch, rows)) for start in range(0, rows, batch)]


def text_plan(
    lengths: IntArray, tokens: int, most: int, limit: int, multiple: int = 1
) -> list[TextBatch]:
    """Batches of a chunk's texts: longest first, equal lengths in row order.

    Each batch holds as many texts as fit ``tokens`` when padded to the longest of them, so that
    short texts keep a device as busy as long texts do.

    Args:
        lengths: number of tokens of each row, including special tokens.
        tokens: maximum number of tokens of a forward pass, including padding; at least ``limit``.
        most: maximum number of texts of a forward pass.
        limit: maximum number of tokens of a text.
        multiple: padded lengths are rounded up to a multiple of it, but not beyond ``limit``.
    """
    # Stable, so that equal lengths stay in row order; int64, because unsigned integers cannot be
    # negated.
    order = np.argsort(-lengths.astype(np.int64), kind="stable").tolist()
    batches = []
    while order:
        length = min(-(-int(lengths[order[0]]) // multiple) * multiple, limit)
        count = min(tokens // length, most)
        batches.append(TextBatch(tuple(order[:count]), length))
        order = order[count:]
    return batches
