"""Reads by h5py, in its own environment; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from benchmarks.reading import ROWS, Indices, Reader, Rows, serve

FILE = "rows.h5"


class Contiguous(Reader):
    """One contiguous data set and fancy indexing, which wants indices that increase."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the file."""
        super().__init__(folder, shape, layout)
        self._file = h5py.File(folder / FILE, "r")
        self._data = self._file["rows"]

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """One data set of items."""
        with h5py.File(folder / FILE, "w") as file:
            file.create_dataset("rows", data=_items(values, layout))

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One selection of all rows."""
        return self._fancy(samples * self.shape[1] + views)

    def all_views(self, samples: Indices) -> Rows:
        """One selection; of neighbours, a slice."""
        if (np.diff(samples) == 1).all():
            found: Rows = self._data[samples[0] : samples[-1] + 1]
            return found
        return self._fancy(samples)

    def _fancy(self, items: Indices) -> Rows:
        unique, back = np.unique(items, return_inverse=True)
        found: Rows = self._data[unique]
        return found[back]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Chunked(Contiguous):
    """A chunk per item, read one by one: fancy indexing of chunks takes ten times as long."""

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """One data set of items, each its own chunk."""
        items = _items(values, layout)
        with h5py.File(folder / FILE, "w") as file:
            file.create_dataset("rows", data=items, chunks=(1, *items.shape[1:]))

    def _fancy(self, items: Indices) -> Rows:
        out = np.empty((len(items), *self._data.shape[1:]), np.float32)
        for number, item in enumerate(items):
            out[number] = self._data[item]
        return out


def _items(values: Rows, layout: str) -> Rows:
    return values.reshape(-1, values.shape[-1]) if layout == ROWS else values


if __name__ == "__main__":
    serve(Contiguous, Chunked)
