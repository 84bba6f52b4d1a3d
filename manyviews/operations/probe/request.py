"""The options of a probe, their checks, and the labels and split that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.imdb.label_sets import read_any_labels, split_in
from featurestore.imdb.splits import read_split
from featurestore.labels.label_set import MULTI_LABEL, LabelSet
from featurestore.labels.splitting import FRACTIONS, PARTS, draw_split
from featurestore.reading.sources import FeatureSource, open_source
from featurestore.storage.store import FeatureStore
from manyviews.operations.collection_labels import labels_of, scan_for, split_of
from producers.sources.collection import CollectionConfig

_DEV_SHARE = 0.1  # of train, if the collection has train and test alone
_SEED = 0

Samples = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labels and the split of a store's samples.

    Attributes:
        labels: the labels of all samples of the store, in its order.
        parts: indices of the samples of ``train``, ``dev`` and ``test``, int64 ``[n]`` each.
        split_from: the origin of the split, as text.
    """

    labels: LabelSet
    parts: Mapping[str, Samples]
    split_from: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """The options of a probe.

    Attributes:
        store: folder of a complete store.
        labels_dir: a folder that the ``labels`` command wrote; or None.
        collection: the collection that the store was built from, whose labels and split are read;
            or None. Exactly one of ``labels_dir`` and ``collection`` is given.
        split_json: the split file; None for that in ``labels_dir`` or of the collection, else a
            split that is drawn.
        features: names of features; None for all.
        threshold: probability above which a class is predicted, for all classes; None chooses the
            multiple of 0.05 with the best micro F1 on dev. For several labels a sample only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    store: Path
    labels_dir: Path | None = None
    collection: CollectionConfig | None = None
    split_json: Path | None = None
    features: tuple[str, ...] | None = None
    threshold: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Checks the options against each other.

        Raises:
            ConfigError: the threshold is not between 0 and 1, or labels are named twice or never.
        """
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(
                f"--threshold must be dev or a number between 0 and 1, found {self.threshold}."
            )
        if (self.labels_dir is None) == (self.collection is None):
            raise ConfigError(
                "Name the labels once: --labels-dir DIR, which `labels` wrote, or the inputs of "
                "the store: --data-dir, --data or --config."
            )

    def check(self) -> Labelled:
        """Reads labels and split, and checks the request without importing torch.

        Raises:
            ConfigError: the store does not have a feature, or the labels have no threshold.
            InputError: the store is missing or not complete, or the split or labels do not match.
        """
        source = open_source(self.store)
        if isinstance(source, FeatureStore):
            source.require_complete()
        for name in self.features or ():
            if name not in source.features:
                held = ", ".join(source.features)
                raise ConfigError(f"{self.store} holds {held}, but not {name!r}.")
        found = self._labelled(source)
        if self.threshold is not None and found.labels.kind != MULTI_LABEL:
            raise ConfigError(
                "--threshold is for several labels a sample; here each has "
                f"{'one class' if found.labels.kind == 'class' else 'a value'}.\nLeave it out."
            )
        return found

    def _labelled(self, source: FeatureSource) -> Labelled:
        ids = source.stems
        stated = None
        if self.labels_dir is not None:
            labels = read_any_labels(self.labels_dir, ids)
            path = self.split_json or split_in(self.labels_dir)
        else:
            assert self.collection is not None
            scanned = scan_for(self.collection, ids, self.store)
            labels, path = labels_of(scanned), self.split_json
            stated = None if path is not None else split_of(scanned)
        if path is not None:
            split = read_split(path, ids)
            parts = {"train": split.train, "dev": split.val, "test": split.test}
            if path == self.split_json:
                return Labelled(labels, parts, str(path))
            return _with_dev(Labelled(labels, parts, str(path)))
        if stated is not None:
            return _with_dev(Labelled(labels, _by_name(stated.parts), "the collection"))
        parts = _by_name(draw_split(labels, FRACTIONS, _SEED))
        shares = ",".join(map(str, FRACTIONS))
        return Labelled(labels, parts, f"drawn, as by --split {shares} --split-seed {_SEED}")


def _by_name(parts: Samples) -> dict[str, Samples]:
    return {name: np.flatnonzero(parts == number) for number, name in enumerate(PARTS)}


def _with_dev(found: Labelled) -> Labelled:
    """Takes dev from train if the split has train and test alone, as many collections do."""
    parts, labels = dict(found.parts), found.labels
    train = parts["train"]
    if len(parts["dev"]) or len(train) < 2 or not len(parts["test"]):
        return found
    rows = LabelSet(labels.kind, labels.classes, labels.rows[train])
    drawn = draw_split(rows, (1 - _DEV_SHARE, _DEV_SHARE, 0.0), _SEED)
    parts |= {"train": train[drawn == 0], "dev": train[drawn == 1]}
    origin = f"{found.split_from}; dev is {_DEV_SHARE:.0%} of its train, drawn with seed {_SEED}"
    return Labelled(labels, parts, origin)
