"""Epochs of a PyTorch ``DataLoader``; started by ``benchmarks/reads.py``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peer_manyviews import FEATURE, STORE, write_store
from benchmarks.peer_numpy import FILE, Memmap
from benchmarks.reading import BATCH_ROWS, Indices, Reader, Rows, serve
from featurestore.training.dataset import FeatureDataset


class Loader(Reader):
    """One pass is an epoch of each sample's clean view, shuffled, in batches of 512."""

    clock = staticmethod(time.perf_counter)
    shuffles = True
    workers = 0

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the files; workers start with the first pass and stay."""
        super().__init__(folder, shape, layout)
        self._loader: DataLoader[Any] = DataLoader(
            self.dataset(),
            batch_size=BATCH_ROWS,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def dataset(self) -> Dataset[Any]:
        """The library's data set."""
        return FeatureDataset(self.folder / STORE, zscore="none")

    write = staticmethod(write_store)

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """A loader gives no rows of choice."""
        raise NotImplementedError

    def all_views(self, samples: Indices) -> Rows:
        """A loader gives no samples of choice."""
        raise NotImplementedError

    def scan(self) -> Iterator[Rows]:
        """An epoch."""
        for batch in self._loader:
            yield (batch[FEATURE] if isinstance(batch, dict) else batch).numpy()


class LoaderOfTwo(Loader):
    """With two worker processes."""

    workers = 2


class Rowwise(Dataset[torch.Tensor]):
    """What most people write around a memmap."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._rows: Rows = np.load(folder / FILE, mmap_mode="r").reshape(shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._rows[item, 0]))


class MemmapLoader(Loader):
    """From one ``.npy`` file."""

    write = staticmethod(Memmap.write)

    def dataset(self) -> Dataset[Any]:
        """Row by row."""
        return Rowwise(self.folder, self.shape)


class MemmapLoaderOfTwo(MemmapLoader):
    """With two worker processes."""

    workers = 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Loader, LoaderOfTwo, MemmapLoader, MemmapLoaderOfTwo)
