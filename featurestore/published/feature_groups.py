"""Datasets of any features and labels, with the interface of the published ones.

Domains are the features' names and ``labels``. There is a dataset of each domain, each pair of
features, each feature with the labels, all features, and these with the labels. A dataset leaves
out the samples that lack one of its domains, and those with a placeholder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.label_sets import read_any_labels, split_in
from featurestore.imdb.splits import read_split
from featurestore.labels.label_set import LabelSet
from featurestore.published.arguments import WithoutEffect
from featurestore.published.domain_groups import LABELS, Groups, ViewOptions
from featurestore.published.domains import DomainDataset, DomainRows
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.rows import FeatureRows
from featurestore.reading.sources import FeatureSource, open_rows, open_source, resolve_advice
from featurestore.storage.moments import Scale, sample_scale_of

Samples = npt.NDArray[np.int64]


def open_feature_groups(
    store: Path | str,
    features: Iterable[str],
    labels_dir: Path | None,
    split_json: Path | None,
    options: ViewOptions,
    unused: WithoutEffect,
) -> tuple[Groups, Groups, Groups]:
    """Creates the training, validation and test datasets of some features of a store.

    Args:
        store: a complete store, or a folder that ``materialize`` wrote.
        features: the features' names.
        labels_dir: a folder that ``labels`` wrote, for the domain ``labels``; or None.
        split_json: the split file; None for that in ``labels_dir``.
        options: the choice of views and of their scaling.
        unused: keywords without effect.

    Raises:
        ConfigError: a feature does not exist, there is no split, or an option is invalid.
        InputError: the store is incomplete, labels or split are of other samples, or no sample is
            left for a dataset.
    """
    source, names = open_source(store), _checked(store, features)
    if not isinstance(source, NpyFolder):
        source.require_complete()
    for name in names:
        if name not in source.features:
            raise ConfigError(
                f"{source.path} holds {', '.join(source.features)}, but not {name!r}."
            )
    split_file = split_json or split_in(labels_dir)
    if split_file is None:
        raise ConfigError(
            "There is no split: name a file with split_json=, or a folder that `labels --split "
            "0.8,0.1,0.1` wrote with labels_dir=."
        )
    labels = None if labels_dir is None else read_any_labels(labels_dir, source.stems)
    split = read_split(split_file, source.stems)
    zscore = source.zscore if isinstance(source, NpyFolder) else "all"
    advice = resolve_advice(source, names, "auto", None, sparse=options.sparse)
    rows = open_rows(source, names, zscore, None, advice, None)
    options.check(source.spec.views)
    unused.check(rows[names[0]])
    groups = FeatureGroups(rows, labels, _usable(source, names, labels), options)
    scales = groups.scales(split.train)
    train, val, test = (groups.of(part, scales) for part in (split.train, split.val, split.test))
    return train, val, test


def _checked(store: Path | str, features: Iterable[str]) -> tuple[str, ...]:
    if isinstance(features, str):
        raise ConfigError(f"features is a list of names, found {features!r}.")
    names = tuple(features)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"features names each feature of {store} once, found {names!r}.")
    return names


def _usable(
    source: FeatureSource, names: Sequence[str], labels: LabelSet | None
) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each sample has a domain, and no placeholder in any: bool ``[N]`` by domain."""
    sound = np.ones(source.spec.samples, bool)
    sound[[bad.index for bad in source.bad_inputs]] = False
    usable = {name: sound & source.present(name) for name in names}
    if labels is not None:
        usable[LABELS] = sound & labels.known
    return usable


@dataclass(frozen=True, slots=True)
class FeatureGroups:
    """Creates the datasets of one part of a split, such as its training samples.

    A domain is one feature, or the labels.

    Attributes:
        rows: the rows of each feature, by domain.
        labels: the labels of all samples, or None.
        usable: for each domain, which of all N samples have it: bool ``[N]``.
        options: the choice of views and of their scaling.
    """

    rows: Mapping[str, FeatureRows]
    labels: LabelSet | None
    usable: Mapping[str, npt.NDArray[np.bool_]]
    options: ViewOptions

    def of(self, samples: Samples, scales: Mapping[str, Scale]) -> Groups:
        """A dataset for each combination of domains, of the samples with indices int64 ``[n]``."""
        return {frozenset(key): self._dataset(key, samples, scales) for key in self._keys()}

    def scales(self, train: Samples) -> dict[str, Scale]:
        """The scale of each feature by its training rows; empty without ``normalize``.

        Raises:
            InputError: a feature has fewer than two training rows.
        """
        if self.options.normalize == "none":
            return {}
        scales = {}
        for name in self.rows:
            rows = self._domain(name, train[self.usable[name][train]], {})
            if len(rows) < 2:
                raise InputError(
                    "normalize='train_split' takes a deviation, so at least two training rows; "
                    f"{name} has {len(rows)}."
                )
            scales[name] = sample_scale_of(rows.moments())
        return scales

    def _keys(self) -> list[tuple[str, ...]]:
        names = tuple(self.rows)
        keys: list[tuple[str, ...]] = [(name,) for name in names]
        keys += itertools.combinations(names, 2)
        keys.append(names)
        if self.labels is not None:
            keys += [(LABELS,), *((name, LABELS) for name in names), (*names, LABELS)]
        return list(dict.fromkeys(keys))

    def _dataset(
        self, key: Sequence[str], samples: Samples, scales: Mapping[str, Scale]
    ) -> DomainDataset:
        has_all = np.logical_and.reduce([self.usable[name][samples] for name in key])
        return DomainDataset({name: self._domain(name, samples[has_all], scales) for name in key})

    def _domain(self, name: str, samples: Samples, scales: Mapping[str, Scale]) -> DomainRows:
        mode = self.options.mode
        if name == LABELS:
            assert self.labels is not None
            views = next(iter(self.rows.values())).views
            return DomainRows(self.labels.rows, samples, 0, repeats=views if mode == "all" else 1)
        return DomainRows(self.rows[name], samples, mode, scales.get(name))
