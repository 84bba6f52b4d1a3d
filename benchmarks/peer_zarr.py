"""Reads of our store by zarr-python, as its users would; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.peer_manyviews import FEATURE, STORE, write_store
from benchmarks.reading import BATCH_SAMPLES, Indices, Reader, Rows, serve


class Zarr(Reader):
    """Orthogonal and vectorized selections."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the array."""
        super().__init__(folder, shape, layout)
        self._array: Any = zarr.open_group(folder / STORE, mode="r")[FEATURE]

    write = staticmethod(write_store)

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """Coordinates of single values: half as long as whole samples of which a view is kept."""
        dims = np.arange(self.shape[2])
        found: Rows = self._array.vindex[samples[:, None], views[:, None], dims[None]]
        return found

    def all_views(self, samples: Indices) -> Rows:
        """An orthogonal selection."""
        found: Rows = self._array.oindex[samples]
        return found

    def scan(self) -> Iterator[Rows]:
        """A slice per chunk."""
        for start in range(0, self.shape[0], BATCH_SAMPLES):
            yield self._array[start : start + BATCH_SAMPLES]


if __name__ == "__main__":
    serve(Zarr)
