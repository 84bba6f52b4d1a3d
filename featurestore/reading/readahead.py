"""Asks the kernel to read chunks before a shuffle's window reaches them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.system.platforms import ON_LINUX


class Readahead:
    """Requests chunks one window ahead of the reader, a few files at a time.

    The kernel reads whole chunks in the background. That is much faster than reading single pages
    for each batch if most of a chunk is used, or if the disk is slow to seek.
    """

    def __init__(self, dataset: Any, chunk_of: npt.NDArray[np.int64], window: int) -> None:
        """Prepares an epoch.

        Args:
            dataset: a ``FeatureDataset``; the chunk files of its features are requested.
            chunk_of: int64 ``[m]``, the chunk of each item in the order of the epoch.
            window: the number of chunks that the shuffle reads from at a time.

        Raises:
            ConfigError: the dataset has no chunk files: its files are materialized, or it is
                resident.
        """
        if not getattr(dataset, "reads_chunks", False):
            raise ConfigError(
                f"A {type(dataset).__name__} reads no chunks that could be read ahead; set "
                "readahead=False."
            )
        _, first = np.unique(chunk_of, return_index=True)
        self._first = np.sort(first)  # the position of the first item of each chunk
        self._chunks = chunk_of[self._first]
        self._window, self._items, self._asked = window, len(chunk_of), 0
        store = dataset.store
        self._arrays = [(store.path, store.spec.feature(name)) for name in dataset.features]
        for root, array in self._arrays:
            if not (root / array.name).is_dir():
                raise ConfigError(f"{root} holds no chunks to read ahead; set readahead=False.")

    def reach(self, position: int) -> None:
        """Requests the chunks up to one window after ``position``, each only once."""
        # An estimate, as if all chunks had equally many items; a window is requested as a whole.
        done = -(-position * len(self._chunks) // self._items)
        for chunk in self._chunks[self._asked : done + self._window]:
            for root, array in self._arrays:
                _will_need(root / array.file(int(chunk)))
        self._asked = max(self._asked, done + self._window)

    def skip(self, position: int) -> None:
        """Skips chunks whose items all come before ``position``."""
        started = int(np.searchsorted(self._first, position, side="right"))
        self._asked = max(0, started - self._window)


def _will_need(path: Path) -> None:
    if not ON_LINUX:
        return
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # this is only advice; reading the chunk raises the error
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)
