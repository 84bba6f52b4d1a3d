"""A small store with its split and labels, shared by many tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.imdb.labels import write_labels
from featurestore.imdb.materialize import materialize
from featurestore.published.domains import DomainDataset
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from featurestore.training.dataset import FeatureDataset
from tests.featurestore.stores import make_store

STEMS = [f"{i:07d}" for i in range(11)]
BAD = {3: [BadInput(3, "image", "truncated", "")], 7: [BadInput(7, "text", "not-json", "x")]}
GOOD = [0, 1, 2, 4, 5, 6, 8, 9, 10]
SPLIT = {"train": [0, 3, 5, 9], "dev": [1, 7], "test": [2, 4]}


def domain_data(dataset: object) -> dict[str, Any]:
    """The rows of a dataset of the published interface, which are used as tensors are."""
    assert isinstance(dataset, DomainDataset)
    return dataset.domain_data


class World:
    """A store with its rows, split and labels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.rows = make_store(self.store, stems=STEMS, bad=BAD)
        self.split = root / "split.json"
        self.split.write_text(json.dumps({k: [STEMS[i] for i in v] for k, v in SPLIT.items()}))
        documents = [{"genres": ["Drama"] if i % 2 else ["War", "Comedy"]} for i in range(11)]
        write_labels(STEMS, documents, root / "labels")

    def materialize(self, folder: Path, zscore: str = "all") -> Path:
        materialize(FeatureStore(self.store), folder, zscore=zscore, split_json=self.split)
        return folder

    def open(self, **arguments: Any) -> FeatureDataset:
        return FeatureDataset(self.store, **{"bad_samples": "include"} | arguments)

    def scaled(self, name: str, chosen: slice | npt.NDArray[np.int64] = slice(None)) -> np.ndarray:
        """The z-score computed from NumPy's moments."""
        rows = self.rows[name]
        wide = rows[chosen].reshape(-1, rows.shape[2]).astype(np.float64)
        mu, sigma = wide.mean(0).astype(np.float32), wide.std(0).astype(np.float32)
        scaled: np.ndarray = (rows - mu) / (sigma + np.float32(1e-6))
        return scaled
