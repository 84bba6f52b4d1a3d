"""Batches of rows: from mapped files, or from chunks that must be decoded."""

from __future__ import annotations

import functools
import resource
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

_SHARE = 8  # of the memory that can be had, what one feature's decoded chunks may take
# Batches that are asked for in advance after one that had to wait for the disk: at first, at most.
_FEWEST, _MOST = 4, 256


class Blocks(Protocol):
    """The blocks ``float32 [V, D]`` of samples, from which batches are taken.

    Attributes:
        shape: (N, V, D).
    """

    shape: tuple[int, int, int]

    def take(
        self,
        samples: npt.NDArray[np.int64],
        view: int | npt.NDArray[np.int64] | None,
        scale: Scale | None = None,
    ) -> npt.NDArray[np.float32]:
        """Reads samples, int64 ``[B]``; the result is a copy.

        Args:
            samples: their numbers.
            view: a number, int64 ``[B]`` or ``[B, 2]``, or None for all views.
            scale: applied to the result, or None.

        Returns:
            float32 ``[B, D]``, ``[B, 2, D]`` or ``[B, V, D]``.

        Raises:
            IndexError: a sample or view does not exist.
            CorruptStoreError: a chunk that is decoded is not what was committed.
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
        """Reads nothing yet.

        Args:
            blocks: float32 ``[chunks, K, V, D]``, each chunk contiguous and whole rows apart.
            samples: N, of which the last chunk may hold fewer than K.
            from_disk: whether rows are to be fetched as they are asked for, and may have to come
                from the disk.
            files: where consecutive samples are read from then; None for the mapping.
        """
        chunks, self._rows, views, dim = blocks.shape
        self.shape = (samples, views, dim)
        row_bytes = dim * blocks.itemsize
        apart = blocks.strides[0] // row_bytes if chunks > 1 else self._rows * views
        # Row (chunk, k, v) is row chunk * apart + k * V + v; nothing is mapped between chunks.
        count = (chunks - 1) * apart + self._rows * views
        strides = (row_bytes, blocks.itemsize)
        as_strided = np.lib.stride_tricks.as_strided
        self._flat = as_strided(blocks, (count, dim), strides)
        # The V rows from each row on, of which only those of whole samples are looked at.
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
            limits = f"samples 0 to {count - 1} and views 0 to {views - 1}"
            raise IndexError(f"There are {limits}.") from None
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
        # Every row is there, so nothing is clipped; it spares NumPy a copy in between.
        self._flat.take(rows, axis=0, out=out, mode="clip")
        return out if scale is None else scale.apply(out)

    def _whole(self, rows: npt.NDArray[np.intp], scale: Scale | None) -> npt.NDArray[np.float32]:
        """All views: one long copy for each sample is faster than one for each row."""
        shape = (len(rows), *self.shape[1:])
        if scale is None and not results.is_large(shape):
            return self._runs[rows]
        out = results.empty(shape)
        for to, row in zip(out, rows.tolist(), strict=True):
            if scale is None:
                to[:] = self._runs[row]
            else:  # what was just copied is divided while it is in the cache
                scale.apply_to(self._runs[row], to)
        return out


def _in_order(samples: npt.NDArray[np.int64]) -> bool:
    return len(samples) > 1 and bool((samples[1:] - samples[:-1] == 1).all())


class _Disk:
    """Whether a batch is worth asking for in advance: a context manager around its reading.

    Asking takes about as long as reading rows that are in memory, and saves most of the time where
    they are not: the disk then gets all requests at once instead of one after the other. A batch
    that was not asked for shows by its page faults whether it should have been.
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
    """Pages for which this thread had to wait for a disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


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
        """Decodes the chunks that hold the samples; see :meth:`Blocks.take`."""
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
