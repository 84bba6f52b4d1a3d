"""Logs of a training loop as JSON: samples, and the rows that were read for them."""

import json
from pathlib import Path
from typing import Any

import torch

from featurestore import FeatureDataset

FEATURE = "clip_image"
DIM = 64


class Log:
    """Per name, the epochs; each a list of batches; each a list of (sample, view) pairs.

    Views are not taken from the loop: each row is looked up among all views.
    """

    def __init__(self, store: str) -> None:
        dataset = FeatureDataset(store, [FEATURE], views="all", bad_samples="include")
        rows = dataset.batch(range(len(dataset)))[FEATURE]
        self._views = [[tuple(row.tolist()) for row in views] for views in rows]
        self.seen: dict[str, Any] = {}

    def epoch(self, name: str) -> None:
        self.seen.setdefault(name, []).append([])

    def batch(self, name: str, batch: dict[str, torch.Tensor]) -> None:
        pairs = [
            (int(sample), self._views[int(sample)].index(tuple(row.tolist())))
            for sample, row in zip(batch["index"], batch[FEATURE], strict=True)
        ]
        if name not in self.seen:
            self.epoch(name)
        self.seen[name][-1].append(pairs)

    def refused(self, name: str, error: BaseException | None) -> None:
        self.seen[name] = f"{type(error).__name__}: {error}"

    def save(self, folder: str, rank: int) -> None:
        (Path(folder) / f"{rank}.json").write_text(json.dumps(self.seen))


def model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(DIM, 1)
