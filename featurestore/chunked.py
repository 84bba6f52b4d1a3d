"""Rows of an array that cannot be mapped: decoded chunk by chunk, the last ones kept."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featurestore.memory import available_bytes
from featurestore.moments import Scale

_SHARE = 8  # of the memory that can be had, what one feature's decoded chunks may take


def default_cache_bytes() -> int:
    """Memory for the decoded chunks of one feature."""
    return available_bytes() // _SHARE


class ChunkedBlocks:
    """The blocks ``float32 [V, D]`` of samples, for reading a batch at a time.

    A batch decodes each chunk that it touches once, whatever the order of its samples. Random
    samples of a store that does not fit into the cache decode one chunk each: such a store is for
    keeping, and for training in the order of its chunks.
    """

    def __init__(
        self,
        read: Callable[[int], npt.NDArray[np.float32]],
        shape: tuple[int, int, int],
        rows: int,
        cache_bytes: int,
    ) -> None:
        """Reads nothing yet.

        Args:
            read: gives chunk n, checked, float32 ``[<= rows, V, D]``.
            shape: (N, V, D).
            rows: samples of a chunk.
            cache_bytes: memory for decoded chunks; one is kept in any case.
        """
        self.shape = shape
        self._rows = rows
        kept = max(1, cache_bytes // (4 * rows * shape[1] * shape[2]))
        # Nothing is locked while a chunk is read, so that a fork never inherits a held lock.
        self._read = functools.lru_cache(kept)(read)

    def take(
        self,
        samples: npt.NDArray[np.int64],
        view: int | npt.NDArray[np.int64] | None,
        scale: Scale | None = None,
    ) -> npt.NDArray[np.float32]:
        """Reads samples, int64 ``[B]``; the result is a copy of its own.

        Args:
            samples: their numbers.
            view: a number, int64 ``[B]`` or ``[B, 2]``, or None for all views.
            scale: applied to the result, or None.

        Returns:
            float32 ``[B, D]``, ``[B, 2, D]`` or ``[B, V, D]``.

        Raises:
            IndexError: a sample or view that is not there.
            CorruptStoreError: a chunk is not what was committed.
        """
        count, views, dim = self.shape
        if len(samples) and (samples.min() < 0 or samples.max() >= count):
            raise IndexError(f"samples are 0 to {count - 1}")
        if view is None:
            numbers = np.broadcast_to(np.arange(views), (len(samples), views))
        else:
            numbers = np.full(len(samples), view) if np.ndim(view) == 0 else np.asarray(view)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < views:
            raise IndexError(f"views are 0 to {views - 1}")
        out = np.empty((*numbers.shape, dim), np.float32)
        chunks, positions = np.divmod(samples, self._rows)
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            block = self._read(int(chunk))
            which = positions[here].reshape(-1, *[1] * (numbers.ndim - 1))
            out[here] = block[which, numbers[here]]
        return out if scale is None else scale.apply(out)
