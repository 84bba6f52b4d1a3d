"""Asks the kernel for chunks before a shuffle's window comes to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError


class Readahead:
    """Keeps one window of chunks ahead of who reads, a few files at a time.

    Chunks are read whole and in the background. That is much faster than the single pages that a
    batch would wait for where most of a chunk is used, or where the disk takes its time to seek.
    """

    def __init__(self, dataset: Any, chunk_of: npt.NDArray[np.int64], window: int) -> None:
        """Prepares an epoch.

        Args:
            dataset: a ``FeatureDataset``, whose features' chunk files are asked for.
            chunk_of: int64 ``[m]``, the chunk of each item in the order of the epoch.
            window: how many chunks the shuffle reads from at a time.

        Raises:
            ConfigError: the dataset has no chunk files: it is of materialized ones, or resident.
        """
        if not getattr(dataset, "reads_chunks", False):
            raise ConfigError(
                f"A {type(dataset).__name__} reads no chunks that could be read ahead; set "
                "readahead=False."
            )
        _, first = np.unique(chunk_of, return_index=True)
        self._first = np.sort(first)  # where each chunk is read from first
        self._chunks = chunk_of[self._first]
        self._window, self._items, self._asked = window, len(chunk_of), 0
        store = dataset.store
        self._arrays = [(store.path, store.spec.feature(name)) for name in dataset.features]
        for root, array in self._arrays:
            if not (root / array.name).is_dir():
                raise ConfigError(f"{root} holds no chunks to read ahead; set readahead=False.")

    def reach(self, position: int) -> None:
        """Asks for what is needed until a window after ``position``, and was not asked for."""
        # Chunks that are done, if each were as large; a window's are all asked for when it begins.
        done = -(-position * len(self._chunks) // self._items)
        for chunk in self._chunks[self._asked : done + self._window]:
            for root, array in self._arrays:
                _will_need(root / array.file(int(chunk)))
        self._asked = max(self._asked, done + self._window)

    def skip(self, position: int) -> None:
        """Leaves out chunks that only items before ``position`` are of."""
        begun = int(np.searchsorted(self._first, position, side="right"))
        self._asked = max(0, begun - self._window)


def _will_need(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # only advice; whoever reads the chunk gets the error
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)
