"""Fit linear probes to each feature of a store and to all of them together, and score them.

A probe is trained on the clean views. A test sample is predicted once from its clean view, and once
from the mean probability over all its views, which shows what the views add without training on
them. The clean views are held in memory: 4 bytes per value, and 8 more per value of train and dev
while a probe is fitted. A process with all of MM-IMDb and four features peaked at 2.2 GB. All views
are read in small blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from consumers.device.devices import make_reproducible, resolve_device
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.splits import read_split
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.sources import FeatureSource, check_content, open_source
from featurestore.training.dataset import FeatureDataset
from manyviews.operations.probe.logistic import LinearProbe, Part, fit_probe
from manyviews.operations.probe.request import ProbeRequest
from manyviews.operations.probe.scores import (
    Booleans,
    Floats,
    Scores,
    best_threshold,
    chance,
    score,
)

BLOCK_BYTES = 32 << 20
# Number of training values below which one thread is faster than several.
_SMALL_VALUES = 1_000_000
_PARTS = {"train": "train", "dev": "val", "test": "test"}

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One row of the table.

    Attributes:
        features: the features that were concatenated.
        dim: their total dimension.
        views: number of views of a test sample that were averaged; 1 is the clean view alone.
        weight_decay: the weight decay chosen on dev.
        threshold: the probability above which a class is predicted.
        scores: the scores on the test set.
    """

    features: tuple[str, ...]
    dim: int
    views: int
    weight_decay: float
    threshold: float
    scores: Scores


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """The scores of all probes.

    Attributes:
        rows: rows of each feature and their concatenation, from the clean view and from all views.
        chance: expected scores of predicting classes at random at their training frequencies.
        samples: number of samples used, by ``train``, ``dev`` and ``test``.
        left_out: number of samples with a bad input, by ``train``, ``dev`` and ``test``.
        absent: number of further samples without the input of a feature, which are left out too.
        classes: number of classes that occur in the test labels.
    """

    rows: tuple[ProbeRow, ...]
    chance: Scores
    samples: Mapping[str, int]
    left_out: Mapping[str, int]
    absent: Mapping[str, int]
    classes: int


def probe(request: ProbeRequest) -> ProbeTable:
    """Fits and scores all probes; equal stores, splits and machines give equal numbers.

    Raises:
        ConfigError: the store does not have a feature, or the device does not exist.
        InputError: the store is not complete, the split or labels do not match it, a part of the
            split is empty, no test sample has a label, or a materialized file differs from what
            was written.
        CorruptStoreError: a chunk differs from what was committed.
    """
    device = resolve_device(request.device)
    make_reproducible()
    clean = {name: _dataset(request, name, "clean") for name in _PARTS}
    store = clean["train"].store
    heads = _heads(store, clean["train"].features)
    if not isinstance(store, NpyFolder) or store.has_digests:
        check_content(store, clean["train"].features, None)
    parts = {name: _clean_part(dataset, device) for name, dataset in clean.items()}
    truth = {name: part.y.cpu().numpy() > 0.5 for name, part in parts.items()}
    if not truth["test"].any():
        raise InputError(f"No test sample of {request.split_json} has one of the 23 genres.")
    with _threads_for(parts["train"].x.numel()):
        probes = {
            names: fit_probe(_columns(parts["train"], columns), _columns(parts["dev"], columns))
            for names, columns in heads.items()
        }
        rows = list(_rows(request, probes, _from_clean(parts, heads, probes), truth, 1))
        if store.spec.views > 1:
            averaged = {
                part: _averaged(_dataset(request, part, "all"), heads, probes, device)
                for part in ("dev", "test")
            }
            rows += _rows(request, probes, averaged, truth, store.spec.views)
    left_out, absent = _left_out(request, clean)
    return ProbeTable(
        rows=tuple(rows),
        chance=chance(truth["train"].mean(0), truth["test"]),
        samples={part: len(dataset) for part, dataset in clean.items()},
        left_out=left_out,
        absent=absent,
        classes=int(truth["test"].any(0).sum()),
    )


def _dataset(request: ProbeRequest, part: str, views: str) -> FeatureDataset:
    # Without a z-score: the probe standardises its training rows, which makes a z-score redundant.
    source = open_source(request.store)
    zscore = source.zscore if isinstance(source, NpyFolder) else "none"
    return FeatureDataset(
        request.store,
        request.features,
        views=views,
        split=_PARTS[part],
        split_json=request.split_json,
        labels_dir=request.labels_dir,
        zscore=zscore,
    )


def _heads(store: FeatureSource, features: tuple[str, ...]) -> dict[tuple[str, ...], slice]:
    """The columns of each feature in the concatenation, and of all features together."""
    if len(set(features)) != len(features):
        raise ConfigError(f"--features must name each feature once, found {', '.join(features)}.")
    heads, start = {}, 0
    for name in features:
        heads[(name,)] = slice(start, start + store.spec.dims[name])
        start += store.spec.dims[name]
    return heads | {features: slice(0, start)}


def _columns(part: Part, columns: slice) -> Part:
    return Part(part.x[:, columns], part.y)


def _clean_part(dataset: FeatureDataset, device: str) -> Part:
    """The clean views of all features, concatenated: float32 ``[n, sum of D]``."""
    dims = [dataset.store.spec.dims[name] for name in dataset.features]
    x = torch.empty(len(dataset), sum(dims), device=device)
    labels = []
    for block in _blocks(len(dataset), sum(dims) * 4):
        batch = dataset.batch(block)
        x[block.start : block.stop] = torch.cat([batch[n] for n in dataset.features], dim=1)
        labels.append(batch["labels"])
    return Part(x, torch.cat(labels).to(device))


def _blocks(count: int, item_bytes: int) -> Iterator[range]:
    step = max(1, BLOCK_BYTES // item_bytes)
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def _from_clean(
    parts: Mapping[str, Part], heads: Mapping[Names, slice], probes: Mapping[Names, LinearProbe]
) -> dict[str, dict[Names, Floats]]:
    return {
        part: {
            names: probes[names].probability(parts[part].x[:, columns]).cpu().numpy()
            for names, columns in heads.items()
        }
        for part in ("dev", "test")
    }


def _averaged(
    dataset: FeatureDataset,
    heads: Mapping[Names, slice],
    probes: Mapping[Names, LinearProbe],
    device: str,
) -> dict[Names, Floats]:
    """The mean probability over all views, float64 ``[n, C]`` per head; reads the views once."""
    spec = dataset.store.spec
    means: dict[Names, list[torch.Tensor]] = {names: [] for names in heads}
    for block in _blocks(
        len(dataset), spec.views * 4 * sum(spec.dims[n] for n in dataset.features)
    ):
        batch = dataset.batch(block)
        x = torch.cat([batch[name] for name in dataset.features], dim=2).to(device)  # [B, V, D]
        for names, columns in heads.items():
            probability = probes[names].probability(x[..., columns].flatten(0, 1))
            means[names].append(probability.reshape(*x.shape[:2], -1).mean(1).cpu())
    return {names: torch.cat(blocks).numpy() for names, blocks in means.items()}


def _rows(
    request: ProbeRequest,
    probes: Mapping[Names, LinearProbe],
    probabilities: Mapping[str, Mapping[Names, Floats]],
    truth: Mapping[str, Booleans],
    views: int,
) -> Iterator[ProbeRow]:
    for names, fitted in probes.items():
        threshold = request.threshold or best_threshold(probabilities["dev"][names], truth["dev"])
        scores = score(probabilities["test"][names], truth["test"], threshold)
        yield ProbeRow(names, len(fitted.center), views, fitted.weight_decay, threshold, scores)


def _left_out(
    request: ProbeRequest, used: Mapping[str, FeatureDataset]
) -> tuple[dict[str, int], dict[str, int]]:
    """The samples of each part that are bad, and the others that lack an input."""
    store = used["train"].store
    split = read_split(request.split_json, store.stems)
    bad = np.unique([b.index for b in store.bad_inputs])
    parts = {part: getattr(split, key) for part, key in _PARTS.items()}
    left_out = {part: int(np.isin(samples, bad).sum()) for part, samples in parts.items()}
    absent = {n: len(samples) - left_out[n] - len(used[n]) for n, samples in parts.items()}
    return left_out, absent


@contextmanager
def _threads_for(values: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    if values < _SMALL_VALUES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
