"""Reads of a store by manyviews itself; started by ``benchmarks/reads.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.reading import Indices, Reader, Rows, serve
from featurestore.reading.mapping import Advice
from featurestore.reading.rows import store_rows
from featurestore.records import Sample, SampleRecord, stems_sha256
from featurestore.storage.creation import create
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.shape import StoreSpec, choose_chunk
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock
from featurestore.training.dataset import FeatureDataset

FEATURE, STORE = "clip_image", "store"
CHUNK = 64


def write_store(values: Rows, folder: Path, layout: str) -> None:  # noqa: ARG001
    """A store of one feature, as a build writes it."""
    n, views, dim = values.shape
    dims = {FEATURE: dim}
    spec = StoreSpec(n, views, choose_chunk(CHUNK, views, dims), dims)
    stems = [f"{index:07d}" for index in range(n)]
    samples = [
        Sample(index, stem, f"{stem}.jpg", f"{stem}.json") for index, stem in enumerate(stems)
    ]
    lock = take_lock(folder / STORE)
    with create(folder / STORE, spec, _fingerprint(spec, stems), samples, lock) as writer:
        for chunk in range(spec.chunks):
            of = spec.samples_of(chunk)
            records = [SampleRecord(index, "0" * 64, "0" * 64, 0, ()) for index in of]
            rows = np.array(values[of.start : of.stop])
            writer.commit_chunk(chunk, {FEATURE: rows}, records, {})
        writer.finish()


def _fingerprint(spec: StoreSpec, stems: list[str]) -> Fingerprint:
    return {
        "samples": spec.samples,
        "stems_sha256": stems_sha256(stems),
        "views": spec.views,
        "seed": 123,
        "chunk": spec.chunk,
        "image_recipe": "none",
        "text_recipe": "none",
        "features": FEATURE,
        "device_kind": "cpu",
        f"{FEATURE}.model": "random numbers",
        f"{FEATURE}.weights_sha256": "0" * 64,
        f"{FEATURE}.dtype": "torch.float32",
        f"{FEATURE}.batch_size": 1,
    }


class Dataset(Reader):
    """``FeatureDataset.batch``: it draws the views itself, and adds the samples' index."""

    knows_views = False
    zscore = "none"
    advice: Advice = "auto"

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the store for both ways of reading; they share the mapped pages."""
        super().__init__(folder, shape, layout)
        views = "random" if layout == "rows" else "all"
        self._data = FeatureDataset(
            folder / STORE, views=views, zscore=self.zscore, advice=self.advice
        )

    write = staticmethod(write_store)

    def rows(self, samples: Indices, views: Indices) -> Rows:  # noqa: ARG002
        """A batch of the ``random`` policy."""
        return self.all_views(samples)

    def all_views(self, samples: Indices) -> Rows:
        """A batch."""
        found: Rows = self._data.batch(cast("Sequence[int]", samples))[FEATURE].numpy()
        return found


class PageByPage(Dataset):
    """The same without reading everything when it is opened, as where memory is short."""

    advice: Advice = "random"


class Scaled(Dataset):
    """The same with a z-score."""

    zscore = "all"
    tolerance = 1e-4

    @staticmethod
    def expected(values: Rows) -> Rows:
        """By NumPy, from all rows."""
        rows = values.reshape(-1, values.shape[-1])
        mean = rows.mean(axis=0, dtype=np.float64)
        wide = (part - mean for part in np.array_split(rows, 100))
        variance = sum(np.square(part).sum(axis=0) for part in wide) / len(rows)
        scaled: Rows = (values - mean.astype(np.float32)) / np.sqrt(variance).astype(np.float32)
        return scaled


class Taken(Reader):
    """``FeatureRows.take``, which is below the dataset."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the store."""
        super().__init__(folder, shape, layout)
        self._rows = store_rows(FeatureStore(folder / STORE), FEATURE, None)

    write = staticmethod(write_store)

    def rows(self, samples: Indices, views: Indices) -> Rows:
        """Rows of given views."""
        return self._rows.take(samples, views)

    def all_views(self, samples: Indices) -> Rows:
        """Whole samples."""
        return self._rows.take(samples, "all")


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Dataset, PageByPage, Scaled, Taken)
