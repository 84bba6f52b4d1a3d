"""Rows of mapped files, taken a batch at a time."""

from __future__ import annotations

import resource
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt

from featurestore import results
from featurestore.moments import Scale
from featurestore.reader import will_need
from featurestore.streaming import FilesInOrder

# Batches that are asked for in advance after one that had to wait for the disk: at first, at most.
_FEWEST, _MOST = 4, 256


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
        """Reads samples, int64 ``[B]``; the result is a copy of its own.

        Args:
            samples: their numbers.
            view: a number, int64 ``[B]`` or ``[B, 2]``, or None for all views.
            scale: applied to the result, or None.

        Returns:
            float32 ``[B, D]``, ``[B, 2, D]`` or ``[B, V, D]``.

        Raises:
            IndexError: a sample or view that is not there.
        """
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
