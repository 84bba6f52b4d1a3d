"""Reads by litdata, in its own environment; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np

from benchmarks.reading import ROWS, Indices, Reader, Rows, serve


class Litdata(Reader):
    """Items by number, in the order of the files: it keeps one file open.

    By default it decodes 256 items to give one, which is for reading in order; here ``scan``
    decodes so, and random reads item by item.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the data set for both ways of reading."""
        super().__init__(folder, shape, layout)
        self._data = litdata.StreamingDataset(str(folder), batch_decode=0)

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """An array per item, in files of 64 MB."""
        items = values.reshape(-1, values.shape[-1]) if layout == ROWS else values
        litdata.optimize(
            partial(_item, items),
            list(range(len(items))),
            str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One by one."""
        return self._items(samples * self.shape[1] + views)

    def all_views(self, samples: Indices) -> Rows:
        """One by one."""
        return self._items(samples)

    def _items(self, items: Indices) -> Rows:
        of_item = self.shape[2:] if self.layout == ROWS else self.shape[1:]
        out = np.empty((len(items), *of_item), np.float32)
        for number in np.argsort(items).tolist():
            out[number] = self._data[int(items[number])]["item"]
        return out


def _item(items: Rows, number: int) -> dict[str, Any]:
    return {"item": np.array(items[number])}


if __name__ == "__main__":
    serve(Litdata)
