"""Reads from one ``.npy`` file, mapped or loaded whole; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.reading import Indices, Reader, Rows, serve

FILE = "rows.npy"


class Memmap(Reader):
    """``numpy.load(..., mmap_mode="r")`` and fancy indexing: what everybody would write."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Maps the file."""
        super().__init__(folder, shape, layout)
        self._flat: Rows = np.load(folder / FILE, mmap_mode="r")
        self._whole = self._flat.reshape(shape)

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:  # noqa: ARG004
        """Samples by views in one dimension: an index of two arrays takes twice as long to read."""
        np.save(folder / FILE, values.reshape(-1, values.shape[-1]))

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """Fancy indexing copies."""
        found: Rows = self._flat[samples * self.shape[1] + views]
        return found

    def all_views(self, samples: Indices) -> Rows:
        """Fancy indexing copies."""
        found: Rows = self._whole[samples]
        return found


if __name__ == "__main__":
    serve(Memmap)
