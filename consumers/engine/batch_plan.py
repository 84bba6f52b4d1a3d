"""Which rows of a chunk share a forward pass: a pure function of the chunk.

The same text in another batch has other last bits, so a byte-identical rebuild needs the same
batches: they never span chunks and never depend on the order of arrival. Importing this module does
not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]

# Texts that may take the place of one of full length. More would gain little where a text has 64
# tokens or fewer of 512, and the memory for what a model keeps per text is bounded.
SHORT = 8
# On a GPU a text's tokens are rounded up to a multiple: matrix products and attention read 16 bytes
# at once, and where a length is no multiple, attention copies its mask to one that is.
_MULTIPLE = 8
# Raised whenever other rows or lengths share a forward pass, or a GPU computes one in another way,
# so that no store mixes two.
_PLANS = {"tokens-1": 1, f"tokens-2-by-{_MULTIPLE}": _MULTIPLE}


@dataclass(frozen=True, slots=True)
class TextBatch:
    """One forward pass over texts.

    Attributes:
        rows: the chunk's rows in it.
        length: tokens that each text is padded to.
    """

    rows: tuple[int, ...]
    length: int


def batch_plan(device: str, begun: str = "") -> str:
    """The name of the plan that batches follow, as the fingerprint has it.

    Args:
        device: ``cpu`` or ``cuda:N``.
        begun: the plan that a store was begun with, on whatever device; it is followed if it can.
    """
    if begun in _PLANS:
        return begun
    own = own_multiple(device)
    return next(name for name, multiple in _PLANS.items() if multiple == own)


def plan_multiple(plan: str) -> int:
    """The multiple that a plan of ``batch_plan`` rounds lengths up to."""
    return _PLANS[plan]


def own_multiple(device: str) -> int:
    """The multiple that lengths are rounded up to on ``cpu``, ``cuda`` or ``cuda:N``."""
    return _MULTIPLE if device.startswith("cuda") else 1


def image_plan(rows: int, batch: int) -> list[slice]:
    """Batches of a chunk's images: consecutive rows in order, the last one shorter."""
    return [slice(start, min(start + batch, rows)) for start in range(0, rows, batch)]


def text_plan(
    lengths: IntArray, tokens: int, most: int, limit: int, multiple: int = 1
) -> list[TextBatch]:
    """Batches of a chunk's texts: longest first, equal lengths in row order.

    Each takes as many as may be padded to its longest, so that short texts keep a device as busy as
    long ones do.

    Args:
        lengths: tokens of each row, special ones included.
        tokens: of a forward pass, padding included; no less than ``limit``.
        most: texts of a forward pass.
        limit: the most tokens of a text.
        multiple: of which a padded length is one, unless ``limit`` comes before.
    """
    # Stable, so that equal lengths stay in row order; int64, since unsigned has no negative.
    order = np.argsort(-lengths.astype(np.int64), kind="stable").tolist()
    batches = []
    while order:
        length = min(-(-int(lengths[order[0]]) // multiple) * multiple, limit)
        count = min(tokens // length, most)
        batches.append(TextBatch(tuple(order[:count]), length))
        order = order[count:]
    return batches
