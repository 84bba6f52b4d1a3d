"""Reads by Lance, in its own environment; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from benchmarks.reading import BATCH_SAMPLES, ROWS, Indices, Reader, Rows, serve


class Lance(Reader):
    """A column of vectors, ``take`` for random rows and ``to_batches`` for all."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the data set."""
        super().__init__(folder, shape, layout)
        self._data = lance.dataset(str(folder / "rows"))

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """A fixed-size list per item."""
        _, views, dim = values.shape
        size = dim if layout == ROWS else views * dim
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        lance.write_dataset(pa.table({"item": column}), str(folder / "rows"))

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One ``take``, in the order asked for."""
        found = self._data.take(samples * self.shape[1] + views)
        return _values(found.column("item").combine_chunks()).reshape(-1, self.shape[2])

    def all_views(self, samples: Indices) -> Rows:
        """One ``take``, in the order asked for."""
        found = self._data.take(samples)
        return _values(found.column("item").combine_chunks()).reshape(-1, *self.shape[1:])

    def scan(self) -> Iterator[Rows]:
        """In batches of the library's scanner."""
        for batch in self._data.to_batches(batch_size=BATCH_SAMPLES):
            yield _values(batch.column("item")).reshape(-1, *self.shape[1:])


def _values(column: Any) -> Rows:
    found: Rows = np.asarray(column.flatten().to_numpy(zero_copy_only=True))
    return found


if __name__ == "__main__":
    serve(Lance)
