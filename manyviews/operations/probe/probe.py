"""Fit linear probes to each feature of a store and to all of them together, and score them.

A probe is trained on the clean views. A test sample is predicted once from its clean view, and once
from the mean prediction over all its views, which shows what the views add without training on
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
from featurestore.labels.label_set import MULTI_LABEL, VALUE, Kind
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.sources import FeatureSource, check_content, open_source
from featurestore.training.dataset import FeatureDataset
from manyviews.operations.probe.logistic import LinearProbe, Part, fit_probe
from manyviews.operations.probe.request import Labelled, ProbeRequest, Samples
from manyviews.operations.probe.targets import (
    AnyScores,
    Predictions,
    Targets,
    chance_of,
    score_of,
    targets_of,
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
        threshold: the probability above which a class is predicted; None unless a sample may have
            several classes.
        scores: the scores on the test set, by the kind of the labels.
    """

    features: tuple[str, ...]
    dim: int
    views: int
    weight_decay: float
    threshold: float | None
    scores: AnyScores


@dataclass(frozen=True, slots=True)
class ProbeTable:
    """The scores of all probes.

    Attributes:
        rows: rows of each feature and their concatenation, from the clean view and from all views.
        chance: the scores without features: of several classes a sample, expected ones of
            predicting classes at random at their training frequencies; of one class, of predicting
            these frequencies; of values, of predicting the mean of training.
        samples: number of samples used, by ``train``, ``dev`` and ``test``.
        left_out: number of samples with a bad input, by ``train``, ``dev`` and ``test``.
        absent: number of further samples without the input of a feature, which are left out too.
        unlabelled: number of other samples without a label, by ``train``, ``dev`` and ``test``.
        classes: number of classes that occur in the test labels; of values 0.
        all_classes: number of classes; of values 0.
        kind: ``multi-label``, ``class`` or ``value``.
        split_from: the origin of the split.
    """

    rows: tuple[ProbeRow, ...]
    chance: AnyScores
    samples: Mapping[str, int]
    left_out: Mapping[str, int]
    absent: Mapping[str, int]
    unlabelled: Mapping[str, int]
    classes: int
    all_classes: int
    kind: Kind
    split_from: str


def probe(request: ProbeRequest, labelled: Labelled | None = None) -> ProbeTable:
    """Fits and scores all probes; equal stores, splits and machines give equal numbers.

    Args:
        request: the options.
        labelled: the result of ``request.check()``, so that labels are not read twice; or None.

    Raises:
        ConfigError: the store does not have a feature, or the device does not exist.
        InputError: the store is not complete, the split or labels do not match it, a part of the
            split is empty, no test sample has a label, or a materialized file differs from what
            was written.
        CorruptStoreError: a chunk differs from what was committed.
    """
    device = resolve_device(request.device)
    make_reproducible()
    clean = _dataset(request, "clean")
    store = clean.store
    heads = _heads(store, clean.features)
    found = request.check() if labelled is None else labelled
    kind = found.labels.kind
    if not isinstance(store, NpyFolder) or store.has_digests:
        check_content(store, clean.features, None)
    used = _used_samples(found, clean)
    truth = targets_of(found.labels, used)
    parts = {name: _clean_part(clean, used[name], truth[name].y, device) for name in _PARTS}
    with _threads_for(parts["train"].x.numel()):
        probes = {
            names: fit_probe(
                _columns(parts["train"], columns), _columns(parts["dev"], columns), kind=kind
            )
            for names, columns in heads.items()
        }
        rows = list(_rows(request, probes, _from_clean(parts, heads, probes), truth, 1))
        if store.spec.views > 1:
            every = _dataset(request, "all")
            averaged = {
                part: _averaged(every, used[part], heads, probes, device)
                for part in ("dev", "test")
            }
            rows += _rows(request, probes, averaged, truth, store.spec.views)
    sound = {name: np.isin(samples, clean.indices) for name, samples in found.parts.items()}
    bad = np.unique([b.index for b in store.bad_inputs])
    left_out = {part: int(np.isin(samples, bad).sum()) for part, samples in found.parts.items()}
    return ProbeTable(
        rows=tuple(rows),
        chance=chance_of(kind, truth),
        samples={part: len(samples) for part, samples in used.items()},
        left_out=left_out,
        absent={part: int((~s).sum()) - left_out[part] for part, s in sound.items()},
        unlabelled={part: int(sound[part].sum()) - len(used[part]) for part in _PARTS},
        classes=0 if kind == VALUE else int(truth["test"].y.any(axis=0).sum()),
        all_classes=0 if kind == VALUE else len(found.labels.classes),
        kind=kind,
        split_from=found.split_from,
    )


def _dataset(request: ProbeRequest, views: str) -> FeatureDataset:
    # Without a z-score: the probe standardises its training rows, which makes a z-score redundant.
    source = open_source(request.store)
    zscore = source.zscore if isinstance(source, NpyFolder) else "none"
    return FeatureDataset(request.store, request.features, views=views, zscore=zscore)


def _used_samples(found: Labelled, dataset: FeatureDataset) -> dict[str, Samples]:
    """The usable samples with a label of each part, int64 ``[n]``.

    Raises:
        InputError: a part has none, or no test sample has a class.
    """
    used: dict[str, Samples] = {}
    for name, samples in found.parts.items():
        sound = samples[np.isin(samples, dataset.indices)]
        if not len(sound):
            raise InputError(
                f"No sample of {dataset.store.path} is left for split {_PARTS[name]!r}.\n"
                f"The split is from {found.split_from}. Draw one: labels --split 0.8,0.1,0.1"
            )
        used[name] = sound[found.labels.known[sound]]
        if not len(used[name]):
            raise InputError(f"No sample of the split's part {name} has a label.")
    rows = found.labels.rows[used["test"]]
    if found.labels.kind == MULTI_LABEL and not (rows > 0.5).any():
        raise InputError(f"No test sample has one of the {rows.shape[1]} classes.")
    return used


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


def _clean_part(
    dataset: FeatureDataset, samples: Samples, y: np.ndarray[tuple[int, int]], device: str
) -> Part:
    """The clean views of all features, concatenated, float32 ``[n, sum of D]``, with labels."""
    dims = [dataset.store.spec.dims[name] for name in dataset.features]
    x = torch.empty(len(samples), sum(dims), device=device)
    items = np.searchsorted(dataset.indices, samples)
    for block in _blocks(len(samples), sum(dims) * 4):
        batch = dataset.batch(items[block])
        x[block] = torch.cat([batch[n] for n in dataset.features], dim=1)
    return Part(x, torch.from_numpy(y).to(device))


def _blocks(count: int, item_bytes: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // item_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _from_clean(
    parts: Mapping[str, Part], heads: Mapping[Names, slice], probes: Mapping[Names, LinearProbe]
) -> dict[str, dict[Names, Predictions]]:
    return {
        part: {
            names: probes[names].predict(parts[part].x[:, columns]).cpu().numpy()
            for names, columns in heads.items()
        }
        for part in ("dev", "test")
    }


def _averaged(
    dataset: FeatureDataset,
    samples: Samples,
    heads: Mapping[Names, slice],
    probes: Mapping[Names, LinearProbe],
    device: str,
) -> dict[Names, Predictions]:
    """The mean prediction over all views, float64 ``[n, C]`` per head; reads the views once."""
    spec = dataset.store.spec
    means: dict[Names, list[torch.Tensor]] = {names: [] for names in heads}
    items = np.searchsorted(dataset.indices, samples)
    for block in _blocks(
        len(samples), spec.views * 4 * sum(spec.dims[n] for n in dataset.features)
    ):
        batch = dataset.batch(items[block])
        x = torch.cat([batch[name] for name in dataset.features], dim=2).to(device)  # [B, V, D]
        for names, columns in heads.items():
            predicted = probes[names].predict(x[..., columns].flatten(0, 1))
            means[names].append(predicted.reshape(*x.shape[:2], -1).mean(1).cpu())
    return {names: torch.cat(blocks).numpy() for names, blocks in means.items()}


def _rows(
    request: ProbeRequest,
    probes: Mapping[Names, LinearProbe],
    predictions: Mapping[str, Mapping[Names, Predictions]],
    truth: Mapping[str, Targets],
    views: int,
) -> Iterator[ProbeRow]:
    for names, fitted in probes.items():
        by_part = {part: predictions[part][names] for part in ("dev", "test")}
        threshold, scores = score_of(fitted.kind, by_part, truth, request.threshold)
        yield ProbeRow(names, len(fitted.center), views, fitted.weight_decay, threshold, scores)


@contextmanager
def _threads_for(values: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    if values < _SMALL_VALUES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
