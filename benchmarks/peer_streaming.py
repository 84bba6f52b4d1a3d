"""Reads by MosaicML streaming, in its own environment; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.reading import ROWS, Indices, Reader, Rows, serve
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()
import streaming  # noqa: E402  imports torchvision


class Mosaic(Reader):
    """MDS files, indexed by arrays of numbers."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the data set."""
        super().__init__(folder, shape, layout)
        streaming.base.util.clean_stale_shared_memory()
        self._data = streaming.StreamingDataset(local=str(folder), batch_size=1)

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """An array per item, in files of its default size."""
        items = values.reshape(-1, values.shape[-1]) if layout == ROWS else values
        encoding = f"ndarray:float32:{','.join(map(str, items.shape[1:]))}"
        with streaming.MDSWriter(out=str(folder), columns={"item": encoding}) as writer:
            for item in items:
                writer.write({"item": np.array(item)})

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One index of all rows."""
        return self._items(samples * self.shape[1] + views)

    def all_views(self, samples: Indices) -> Rows:
        """One index of all samples."""
        return self._items(samples)

    def _items(self, items: Indices) -> Rows:
        return np.stack([found["item"] for found in self._data[items]])


if __name__ == "__main__":
    serve(Mosaic)
