"""Orders in which an epoch visits its items: pure functions of (seed, epoch).

Keys are drawn and sorted, rather than items shuffled in place: Philox's raw numbers are fixed for
ever (NumPy's NEP 19 promises it of raw streams, and of no method such as ``permutation``), so a
training that goes on after an upgrade finds the order that it left.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

from operator import index
from typing import Literal

import numpy as np
import numpy.typing as npt

Purpose = Literal["items", "chunks", "views", "other views"]
_PURPOSES: tuple[Purpose, ...] = ("items", "chunks", "views", "other views")

Integers = npt.NDArray[np.int64]


def draws(seed: int, epoch: int, purpose: Purpose, count: int) -> npt.NDArray[np.uint64]:
    """Uniform 64-bit numbers, ``uint64 [count]``, that depend on the arguments alone.

    A longer draw begins with the shorter one.

    Args:
        seed: any integer; taken modulo 2**64.
        epoch: the same.
        purpose: what they decide on, so that no two decisions share their numbers.
        count: how many.
    """
    key = np.array([index(seed) % 2**64, index(epoch) % 2**64], np.uint64)
    # The high word of the counter: streams of 2**192 blocks each, which never meet.
    counter = np.array([0, 0, 0, _PURPOSES.index(purpose)], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int, epoch: int) -> Integers:
    """All of ``0 .. count - 1``, every order equally likely."""
    return draws(seed, epoch, "items", count).argsort(kind="stable")


def chunk_by_chunk(chunk_of: Integers, seed: int, epoch: int) -> Integers:
    """Items with those of a chunk side by side and in order, the chunks in random order.

    Args:
        chunk_of: int64 ``[n]``, each item's chunk.
        seed: of the draw.
        epoch: of the draw.

    Returns:
        int64 ``[n]``: a permutation of the items.
    """
    chunks, inverse = np.unique(chunk_of, return_inverse=True)
    return draws(seed, epoch, "chunks", len(chunks))[inverse].argsort(kind="stable")


def shuffle_windows(
    items: Integers, chunk_of: Integers, window: int, seed: int, epoch: int
) -> Integers:
    """Shuffles items inside windows of consecutive chunks.

    Each chunk is in one window, so while a window is read, nothing but its ``window`` chunks is.

    Args:
        items: int64 ``[m]``, those of a chunk side by side, as :func:`chunk_by_chunk` gives them.
        chunk_of: int64 ``[n]``, the chunk of every item there is.
        window: how many chunks, at least 1.
        seed: of the draw.
        epoch: of the draw.

    Returns:
        int64 ``[m]``: the same items.
    """
    chunk = chunk_of[items]
    turn = np.cumsum(np.diff(chunk, prepend=chunk[:1]) != 0)  # counts the chunks from 0
    keys = draws(seed, epoch, "items", len(chunk_of))[items]
    return items[np.lexsort((keys, turn // window))]
