"""Reads from a torch tensor that was loaded whole; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.peer_numpy import FILE, Memmap
from benchmarks.reading import Indices, Reader, Rows, serve


class Tensor(Reader):
    """``index_select``, which is faster than brackets."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Loads the file."""
        super().__init__(folder, shape, layout)
        self._flat = torch.from_numpy(np.load(folder / FILE))
        self._whole = self._flat.view(shape[0], shape[1] * shape[2])

    write = staticmethod(Memmap.write)

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """A new tensor."""
        picks = torch.from_numpy(samples * self.shape[1] + views)
        found: Rows = self._flat.index_select(0, picks).numpy()
        return found

    def all_views(self, samples: Indices) -> Rows:
        """A new tensor."""
        found: Rows = self._whole.index_select(0, torch.from_numpy(samples)).numpy()
        return found.reshape(-1, *self.shape[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Tensor)
