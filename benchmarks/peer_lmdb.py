"""Reads by LMDB, in its own environment; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np

from benchmarks.reading import SAMPLES, Indices, Reader, Rows, serve


class Lmdb(Reader):
    """A value per sample, read as a buffer: no row is copied but those asked for."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Maps the file; for single rows without read-ahead, as its documentation says."""
        super().__init__(folder, shape, layout)
        ahead = layout == SAMPLES
        self._env = lmdb.open(str(folder), readonly=True, lock=False, readahead=ahead)

    @staticmethod
    def write(values: Rows, folder: Path, layout: str) -> None:  # noqa: ARG004
        """In the order of the keys, in one transaction."""
        env = lmdb.open(str(folder), map_size=2 * values.nbytes + (1 << 26))
        with env.begin(write=True) as transaction:
            for sample, value in enumerate(values):
                transaction.put(_key(sample), value.tobytes(), append=True)
        env.close()

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One transaction per batch."""
        dim = self.shape[2]
        out = np.empty((len(samples), dim), np.float32)
        picks = zip(samples.tolist(), (views * (4 * dim)).tolist(), strict=True)
        with self._env.begin(buffers=True) as transaction:
            for number, (sample, at) in enumerate(picks):
                value = transaction.get(_key(sample))
                out[number] = np.frombuffer(value, np.float32, dim, at)
        return out

    def all_views(self, samples: Indices) -> Rows:
        """One transaction per batch."""
        out = np.empty((len(samples), self.shape[1] * self.shape[2]), np.float32)
        with self._env.begin(buffers=True) as transaction:
            for number, sample in enumerate(samples.tolist()):
                out[number] = np.frombuffer(transaction.get(_key(sample)), np.float32)
        return out.reshape(-1, *self.shape[1:])

    def close(self) -> None:
        """Unmaps the file."""
        self._env.close()


def _key(sample: int) -> bytes:
    return sample.to_bytes(8, "big")


if __name__ == "__main__":
    serve(Lmdb)
