"""The order of the items in an epoch, computed by pure functions of (seed, epoch).

Random keys are sorted, instead of shuffling items with NumPy: Philox's raw numbers never change
(NumPy's NEP 19 guarantees that for raw streams, but not for methods such as ``permutation``), so a
training run that is resumed after an upgrade of NumPy keeps its order.

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

    The first numbers do not depend on ``count``.

    Args:
        seed: any integer; taken modulo 2**64.
        epoch: any integer; taken modulo 2**64.
        purpose: the use of the numbers; different purposes get independent numbers.
        count: how many numbers.
    """
    key = np.array([index(seed) % 2**64, index(epoch) % 2**64], np.uint64)
    # The purpose is the high word of the counter: streams of 2**192 blocks that never overlap.
    counter = np.array([0, 0, 0, _PURPOSES.index(purpose)], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int, epoch: int) -> Integers:
    """A random permutation of ``0 .. count - 1``, all equally likely."""
    return draws(seed, epoch, "items", count).argsort(kind="stable")


def chunk_by_chunk(chunk_of: Integers, seed: int, epoch: int) -> Integers:
    """All items, with the chunks in random order and the items of each chunk in sequence.

    Args:
        chunk_of: int64 ``[n]``, each item's chunk.
        seed: the seed of the random order.
        epoch: the epoch of the random order.

    Returns:
        int64 ``[n]``: a permutation of the items.
    """
    chunks, inverse = np.unique(chunk_of, return_inverse=True)
    return draws(seed, epoch, "chunks", len(chunks))[inverse].argsort(kind="stable")


def shuffle_windows(
    items: Integers, chunk_of: Integers, window: int, seed: int, epoch: int
) -> Integers:
    """Shuffles items inside windows of consecutive chunks.

    Each chunk is in exactly one window, so reading a window only reads its ``window`` chunks.

    Args:
        items: int64 ``[m]``, the items of each chunk in sequence, as :func:`chunk_by_chunk`
            returns them.
        chunk_of: int64 ``[n]``, the chunk of every item of the dataset.
        window: the number of chunks in a window, at least 1.
        seed: the seed of the random order.
        epoch: the epoch of the random order.

    Returns:
        int64 ``[m]``: the same items, shuffled.
    """
    chunk = chunk_of[items]
    turn = np.cumsum(np.diff(chunk, prepend=chunk[:1]) != 0)  # counts the chunks from 0
    keys = draws(seed, epoch, "items", len(chunk_of))[items]
    return items[np.lexsort((keys, turn // window))]
