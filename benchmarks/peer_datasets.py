"""Reads by Hugging Face datasets; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from benchmarks.reading import BATCH_SAMPLES, ROWS, Indices, Reader, Rows, serve


class HuggingFace(Reader):
    """A column of vectors in Arrow's format: "numpy" takes up to three times as long to read."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Maps the files."""
        super().__init__(folder, shape, layout)
        self._data = datasets.load_from_disk(str(folder)).with_format("arrow")

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """A fixed-size list per item."""
        _, views, dim = values.shape
        size = dim if layout == ROWS else views * dim
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        datasets.disable_progress_bars()
        datasets.Dataset(pa.table({"item": column})).save_to_disk(str(folder))

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One index of all rows."""
        return _values(self._data[samples * self.shape[1] + views]).reshape(-1, self.shape[2])

    def all_views(self, samples: Indices) -> Rows:
        """One index of all samples."""
        return _values(self._data[samples]).reshape(-1, *self.shape[1:])

    def scan(self) -> Iterator[Rows]:
        """By its own iterator of batches."""
        for batch in self._data.iter(BATCH_SAMPLES):
            yield _values(batch).reshape(-1, *self.shape[1:])


def _values(batch: Any) -> Rows:
    found: Rows = batch["item"].combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return found


if __name__ == "__main__":
    serve(HuggingFace)
