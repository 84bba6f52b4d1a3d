"""Batches of rows: from mapped files, or from chunks that must be decoded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featurestore.reading.mapping import will_need
from featurestore.reading.sequential import FilesInOrder
from featurestore.storage.moments import Scale
from featurestore.system import results
from featurestore.system.limits import available_bytes

_SHARE = 8  # one feature's decoded chunks may take this fraction (1/8) of the available memory
# Number of batches to prefetch after one that had to wait for the disk: at first, and at most.
_FEWEST, _MOST = 4, 256


class Blocks(Protocol):
    """The blocks ``float32 [V, D]`` of samples, from which batches are taken.

    Attributes:
        shape: the numbers of samples, views and dimensions: (N, V, D).
    """

    shape: tuple[int, int, int]

    def take(
        self,
        samples: npt.NDArray[np.int64],
        view: int | npt.NDArray[np.int64] | None,
        scale: Scale | None = None,
    ) -> npt.NDArray[np.float32]:
        """Reads the views of some samples; the result is a copy.

        Args:
            samples: int64 ``[B]``, the samples' numbers.
            view: a view's number, int64 ``[B]`` or ``[B, 2]`` numbers, or None for all views.
            scale: the scale to apply to the result, or None.

        Returns:
            float32 ``[B, D]``, ``[B, 2, D]`` or ``[B, V, D]``.

        Raises:
            IndexError: a sample or view does not exist.
            CorruptStoreError: a decoded chunk differs from what was committed.
        """
        ...


class MappedBlocks:
    """The blocks ``float32 [V, D]`` of samples in mapped memory."""

    def __init__(
        self,
        blocks: npt.NDArray[np.float32],
        samples: int,
        *,
        from_disk: bool = False,
        files: FilesInOrder | None = None,
    ) -> None:
        """Prepares reading; reads no rows.

        Args:
            blocks: float32 ``[chunks, K, V, D]``; each chunk is contiguous, and the distance
                between chunks is a whole number of rows.
            samples: N; the last chunk may hold fewer than K samples.
            from_disk: whether rows are fetched on access and may come from the disk.
            files: with ``from_disk``, the files from which consecutive samples are read; None reads
                them from the mapping.
        """
        chunks, self._rows, views, dim = blocks.shape
        self.shape = (samples, views, dim)
        row_bytes = dim * blocks.itemsize
        apart = blocks.strides[0] // row_bytes if chunks > 1 else self._rows * views
        # Row (chunk, k, v) is flat row chunk * apart + k * V + v; gaps between chunks are unmapped.
        count = (chunks - 1) * apart + self._rows * views
        strides = (row_bytes, blocks.itemsize)
        as_strided = np.lib.stride_tricks.as_strided
        self._flat = as_strided(blocks, (count, dim), strides)
        # Entry i holds the V rows from row i on; only entries at the start of a sample are used.
        self._runs = as_strided(blocks, (count - views + 1, views, dim), (row_bytes, *strides))
        self._gap = apart - self._rows * views
        self._files = files if from_disk else None
        self._disk: AbstractContextManager[bool] = _Disk() if from_disk else nullcontext(False)

    def take(
        self,
        samples: npt.NDArray[np.int64],
        view: int | npt.NDArray[np.int64] | None,
        scale: Scale | None = None,
    ) -> npt.NDArray[np.float32]:
        """Copies rows from the mapping; see :meth:`Blocks.take`."""
        count, views, _ = self.shape
        if view is not None and np.ndim(view) == 2:
            samples = samples[:, None]
        try:
            rows = np.ravel_multi_index((samples, 0 if view is None else view), (count, views))
        except ValueError:
            raise _out_of_range(count, views) from None
        if self._gap:
            rows += samples // self._rows * self._gap
        if view is None and self._files is not None and _in_order(samples):
            out = results.empty((len(samples), *self.shape[1:]))
            if self._files.read(int(samples[0]), out):
                return out if scale is None else scale.apply(out)
        with self._disk as is_slow:
            if is_slow:
                will_need(self._flat, rows.reshape(-1), views if view is None else 1)
            return self._whole(rows, scale) if view is None else self._gather(rows, scale)

    def _gather(self, rows: npt.NDArray[np.intp], scale: Scale | None) -> npt.NDArray[np.float32]:
        out = results.empty((*rows.shape, self.shape[2]))
        # All rows exist, so nothing is clipped; the mode spares NumPy an intermediate copy.
        self._flat.take(rows, axis=0, out=out, mode="clip")
        return out if scale is None else scale.apply(out)

    def _whole(self, rows: npt.NDArray[np.intp], scale: Scale | None) -> npt.NDArray[np.float32]:
        """Copies all views: one long copy per sample is faster than one per row."""
        shape = (len(rows), *self.shape[1:])
        if scale is None and not results.is_large(shape):
            return self._runs[rows]
        out = results.empty(shape)
        for to, row in zip(out, rows.tolist(), strict=True):
            if scale is None:
                to[:] = self._runs[row]
            else:  # scales one sample at a time, while it is in the processor's cache
                scale.apply_to(self._runs[row], to)
        return out


def _out_of_range(samples: int, views: int) -> IndexError:
    return IndexError(f"There are samples 0 to {samples - 1} and views 0 to {views - 1}.")


def _in_order(samples: npt.NDArray[np.int64]) -> bool:
    return len(samples) > 1 and bool((samples[1:] - samples[:-1] == 1).all())


class _Disk:
    """Decides whether to prefetch a batch; a context manager around the reading of the batch.

    A prefetch takes about as long as reading rows that are in memory, and saves most of the time
    if they are not: the disk then gets all requests at once instead of one after the other. The
    page faults of a batch without prefetch show whether the next ones need it.
    """

    def __init__(self) -> None:
        self._left = self._next = _FEWEST
        self._faults = 0

    def __enter__(self) -> bool:
        self._faults = _major_faults()
        return self._left > 0

    def __exit__(self, *_: object) -> None:
        if self._left > 0:
            self._left -= 1
        elif _major_faults() > self._faults:
            self._left = self._next
            self._next = min(2 * self._next, _MOST)
        else:
            self._next = _FEWEST


def _major_faults() -> int:
    """Number of pages for which this thread had to wait for a disk."""
    import resource  # Windows has no such module, and asks for no advice that depends on it

    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def default_cache_bytes() -> int:
    """Default size in bytes of the cache for the decoded chunks of one feature."""
    return available_bytes() // _SHARE


class ChunkedBlocks:
    """The blocks ``float32 [V, D]`` of samples in chunks that must be decoded.

    A batch decodes each of its chunks once, in any order of its samples. If the store does not fit
    into the cache, each random sample decodes a whole chunk: such a store suits archiving, and
    training in the order of its chunks.
    """

    def __init__(
        self,
        read: Callable[[int], npt.NDArray[np.float32]],
        shape: tuple[int, int, int],
        rows: int,
        cache_bytes: int,
    ) -> None:
        """Prepares reading; reads no rows.

        Args:
            read: a function that returns chunk n, checked, float32 ``[<= rows, V, D]``.
            shape: the numbers of samples, views and dimensions: (N, V, D).
            rows: samples per chunk.
            cache_bytes: memory for decoded chunks; at least one chunk is kept.
        """
        self.shape = shape
        self._rows = rows
        kept = max(1, cache_bytes // (4 * rows * shape[1] * shape[2]))
        # lru_cache holds no lock while a chunk is read, so that a fork never inherits a held lock.
        self._read = functools.lru_cache(kept)(read)

    def take(
        self,
        samples: npt.NDArray[np.int64],
        view: int | npt.NDArray[np.int64] | None,
        scale: Scale | None = None,
    ) -> npt.NDArray[np.float32]:
        """Decodes the chunks that hold the samples; see :meth:`Blocks.take`."""
        count, views, dim = self.shape
        if len(samples) and (samples.min() < 0 or samples.max() >= count):
            raise _out_of_range(count, views)
        if view is None:
            numbers = np.broadcast_to(np.arange(views), (len(samples), views))
        else:
            numbers = np.full(len(samples), view) if np.ndim(view) == 0 else np.asarray(view)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < views:
            raise _out_of_range(count, views)
        out = np.empty((*numbers.shape, dim), np.float32)
        chunks, positions = np.divmod(samples, self._rows)
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            block = self._read(int(chunk))
            which = positions[here].reshape(-1, *[1] * (numbers.ndim - 1))
            out[here] = block[which, numbers[here]]
        return out if scale is None else scale.apply(out)
