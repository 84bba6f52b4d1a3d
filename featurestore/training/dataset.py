"""Lazy random access to a store, or to materialized files, while training.

Rows come directly from memory-mapped files, a batch at a time: with ``num_workers=0`` a
``DataLoader`` reads at memory speed, and worker processes only slow it down. Workers are supported
nevertheless, with fork and spawn: a dataset is pickled as its arguments and maps the files again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.splits import Split, read_split
from featurestore.imdb.view_labels import open_labels
from featurestore.reading.mapping import Advice
from featurestore.reading.sources import (
    FeatureSource,
    check_content,
    chosen_chunks,
    content_crc32c,
    open_rows,
    open_source,
    require_unchanged,
    resolve_advice,
)
from featurestore.reading.views import Views, view_policy
from featurestore.sampling.callers import counted_epoch
from featurestore.storage.moments import Scale
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.training.collate import Batch
from featurestore.training.epoch import LocalEpoch, SharedEpoch

_PARTS = ("train", "val", "test")
_DTYPES = (torch.float32, torch.bfloat16)


class FeatureDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples as tensors.

    An item is a dictionary: each feature as ``[D]`` (``[V, D]`` for ``views="all"``, ``[2, D]`` for
    ``"pair"``), ``index`` (int64, the sample's row in the store), and ``labels`` if requested:
    float32 ``[23]``, or with ``labels="augmented"`` in the shape of the features, with 23 instead
    of D.

    Attributes:
        store: the store, or an ``NpyFolder`` with the same attribute names.
        features: names of the features in an item.
        indices: the sample in the store of each item, int64 ``[len]``.
        views: the view policy: a number (0 for ``clean``) or its name.
        reads_chunks: True, because a sampler may read the chunk files ahead.
    """

    reads_chunks = True

    _epoch_was_set = False

    def __init__(
        self,
        store: Path | str,
        features: Iterable[str] | None = None,
        *,
        views: Views = "clean",
        split: str | None = None,
        split_json: Path | str | None = None,
        labels_dir: Path | str | None = None,
        labels: str = "base",
        zscore: str = "all",
        bad_samples: str = "exclude",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        partial: bool = False,
        prefix: str | None = None,
        advice: Advice = "auto",
        checksum: bool = False,
    ) -> None:
        """Opens a store, or a folder of materialized files.

        Args:
            store: the folder of the store or of the materialized files.
            features: names of the features to read; all of them by default.
            views: ``clean`` (view 0), a view's number, ``all``, ``mean`` (over all views),
                ``random`` (one view) or ``pair`` (two different ones, all ordered pairs equally
                likely). The random choices depend on (seed, epoch, sample) alone, not on the order
                or the number of workers. See :meth:`set_epoch`.
            split: ``train``, ``val`` or ``test``; every sample by default.
            split_json: the split file, needed for ``split`` and for ``zscore="train"``.
            labels_dir: a folder that the ``labels`` command wrote.
            labels: ``base``, the clean labels of a sample; or ``augmented``, with the published
                noise of each view that is read (for ``mean``, their mean): from the file that
                ``labels --augment`` wrote to ``labels_dir`` or to the folder of materialized files,
                else computed from those of ``labels_dir``.
            zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``; for materialized
                files, the scaling that they already have.
            bad_samples: ``exclude`` omits samples with a placeholder, ``include`` keeps them;
                ``zscore="train"`` never uses them.
            seed: the seed of ``random`` and ``pair``.
            dtype: the features' data type, ``torch.float32`` or ``torch.bfloat16``.
            partial: accept an incomplete store: read the samples of the chunks committed so far,
                with a z-score from these alone, which differs from that of the complete store.
            prefix: the beginning of the names of materialized files; only needed with several sets.
            advice: how the kernel fetches the files: ``auto`` chooses by their size, the available
                memory and the views, see ``mapping.choose_advice``; or one of its results.
            checksum: read the features once and compare them with the recorded checksums. Without
                this, only the files' sizes are checked, and a damaged disk may give wrong features.

        Raises:
            InputError: the store or files are incomplete, or split or labels do not fit.
            ConfigError: an argument is invalid.
            CorruptStoreError: the store is damaged.
            StorageError: a file cannot be read.
        """
        self._arguments: dict[str, Any] = {
            "store": str(store),
            "features": _listed(features),
            "views": views,
            "split": split,
            "split_json": split_json,
            "labels_dir": labels_dir,
            "labels": labels,
            "zscore": zscore,
            "bad_samples": bad_samples,
            "seed": seed,
            "dtype": dtype,
            "prefix": prefix,
            "advice": advice,
        }
        source = open_source(store, prefix)
        self._open(source, chosen_chunks(source, partial=partial), None)
        self._epoch = SharedEpoch() if self._policy.is_drawn else LocalEpoch()
        if checksum:
            if self._labels is not None:
                self._labels.check()
            check_content(self.store, self.features, self._chunks)

    def _open(
        self,
        source: FeatureSource,
        chunks: tuple[int, ...] | None,
        opened: _Opened | None,
    ) -> None:
        """Opens the source with the stored arguments; in a worker, uses the state ``opened``."""
        a = self._arguments
        if a["dtype"] not in _DTYPES:
            raise ConfigError(f"dtype is torch.float32 or torch.bfloat16, found {a['dtype']!r}.")
        self.store, self._chunks, self._dtype = source, chunks, a["dtype"]
        self.features = _chosen_features(source, a["features"])
        self._policy = view_policy(a["views"], source.spec.views, a["seed"])
        self.views = self._policy.views
        split = None
        if opened is None and a["split_json"] is not None:
            split = read_split(a["split_json"], source.stems)
        self.indices = self._chosen(split) if opened is None else opened.indices
        train = None if split is None else split.train
        scales = None if opened is None else opened.scales
        sparse = self._policy.is_one
        advice = resolve_advice(source, self.features, a["advice"], chunks, sparse=sparse)
        self._rows = open_rows(source, self.features, a["zscore"], train, advice, chunks, scales)
        require_unchanged(source, self.features, chunks)
        folder = None if a["labels_dir"] is None else Path(a["labels_dir"])
        self._labels = open_labels(a["labels"], folder, source)

    def _chosen(self, split: Split | None) -> npt.NDArray[np.int64]:
        """The samples of the split that are committed and not excluded."""
        source, a = self.store, self._arguments
        indices = _chosen_samples(source, a["split"], split, a["bad_samples"])
        if self._chunks is not None and isinstance(source, FeatureStore):
            indices = indices[source.committed(self._chunks)[indices]]
        if len(indices) == 0:
            raise InputError(f"No sample of {source.path} is left for split {a['split']!r}.")
        return indices

    def __getstate__(self) -> dict[str, Any]:
        # The chosen samples are stored, because the split file may have changed by then.
        opened = _Opened(
            self.store.spec,
            content_crc32c(self.store, self.features, self._chunks),
            self.indices,
            self._costly_scales(),
        )
        return {
            "arguments": self._arguments,
            "opened": opened,
            "chunks": self._chunks,
            "epoch": self._epoch,
        }

    def _costly_scales(self) -> dict[str, Scale | None] | None:
        """The scales for ``zscore="train"``, so that workers need not compute them again."""
        if self._arguments["zscore"] != "train":
            return None
        return {name: rows.scale for name, rows in self._rows.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments, self._epoch = state["arguments"], state["epoch"]
        source = open_source(self._arguments["store"], self._arguments["prefix"])
        opened: _Opened | None = state.get("opened")
        if opened is None:
            raise InputError("This dataset was pickled by another version.\nCreate it again.")
        if source.spec != opened.spec:
            raise InputError(
                f"{source.path} has changed since the dataset was created: {source.spec}.\n"
                "Create the dataset again."
            )
        self._open(source, state["chunks"], opened)
        if content_crc32c(source, self.features, self._chunks) != opened.content_crc32c:
            raise InputError(
                f"Rows of {source.path} have changed since the dataset was created.\n"
                "Create the dataset again."
            )

    @property
    def epoch(self) -> int:
        """The epoch that was set; 0 initially."""
        return self._epoch.value

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch for ``random`` and ``pair``; call it before each epoch.

        The number reaches the workers of a loader, also persistent ones. Do not call this during an
        epoch, because workers read ahead.
        """
        self._epoch.value, self._epoch_was_set = epoch, True

    def _drawn_epoch(self) -> int:
        """The epoch that was set, else the one that a reading Accelerate loader counts."""
        if self._epoch_was_set or not self._policy.is_drawn:
            return self.epoch
        counted = counted_epoch()
        return self.epoch if counted is None else counted

    def state_dict(self) -> dict[str, int]:
        """The epoch; torchdata's ``StatefulDataLoader`` passes it to its workers."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the epoch that a state holds."""
        self.set_epoch(state["epoch"])

    @property
    def stems(self) -> list[str]:
        """The stem of each item."""
        stems = self.store.stems
        return [stems[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, item: SupportsIndex) -> dict[str, torch.Tensor]: ...

    @overload
    def __getitem__(self, item: slice) -> list[dict[str, torch.Tensor]]: ...

    def __getitem__(self, item: SupportsIndex | slice) -> dict[str, torch.Tensor] | list[Any]:
        """One item, or a slice of them as a list; negative numbers count from the end.

        Raises:
            IndexError: out of range.
            TypeError: not an integer.
        """
        if isinstance(item, slice):
            return list(self.__getitems__(range(len(self))[item]))
        number = operator.index(item)
        if not -len(self) <= number < len(self):
            raise IndexError(f"item {number} of a dataset of {len(self)}")
        batch = self._batch(self.indices[[number]])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Several items with one read per feature; called by ``DataLoader``."""
        return Batch(self.batch(items))

    def batch(self, items: Sequence[int] | npt.NDArray[np.integer]) -> dict[str, torch.Tensor]:
        """Several items as one dictionary of stacked tensors: the fastest way to read.

        Args:
            items: ``[B]`` integers in any order; repetitions are allowed.

        Raises:
            IndexError: an item is out of range.
            TypeError: ``items`` is not a list of integers.
        """
        numbers = np.asarray(items)
        if numbers.dtype.kind not in "iu" and numbers.size:
            raise TypeError(f"items are integers, found {numbers.dtype}")
        if numbers.ndim != 1:
            raise TypeError(f"items are one list of integers, found shape {numbers.shape}")
        return self._batch(self.indices[numbers.astype(np.int64, copy=False)])

    def _batch(self, samples: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        view = self._policy.choose(samples, self._drawn_epoch())
        batch = {}
        for name, rows in self._rows.items():
            tensor = torch.from_numpy(rows.take(samples, view))
            batch[name] = tensor if self._dtype is torch.float32 else tensor.to(self._dtype)
        batch["index"] = torch.from_numpy(samples)
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels.take(samples, view))
        return batch


@dataclass(frozen=True, slots=True)
class _Opened:
    """The state of a dataset that is pickled for other processes, and checked there.

    Attributes:
        spec: the store's shape.
        content_crc32c: the checksum of the rows' recorded checksums.
        indices: the chosen samples, int64 ``[len]``.
        scales: the scales by feature, see ``FeatureDataset._costly_scales``.
    """

    spec: StoreSpec
    content_crc32c: str
    indices: npt.NDArray[np.int64]
    scales: Mapping[str, Scale | None] | None


def _listed(features: Iterable[str] | None) -> tuple[str, ...] | None:
    if isinstance(features, str):
        raise ConfigError(f"features is a list of names, found {features!r}.")
    return None if features is None else tuple(features)


def _chosen_features(source: FeatureSource, asked: Sequence[str] | None) -> tuple[str, ...]:
    features = source.features if asked is None else tuple(asked)
    for name in features:
        if name not in source.features:
            held = ", ".join(source.features)
            raise ConfigError(f"{source.path} holds {held}, but not {name!r}.")
    return features


def _chosen_samples(
    source: FeatureSource, part: str | None, split: Split | None, bad_samples: str
) -> npt.NDArray[np.int64]:
    if bad_samples not in ("exclude", "include"):
        raise ConfigError(f"bad_samples is exclude or include, found {bad_samples!r}.")
    chosen = np.arange(source.spec.samples, dtype=np.int64)
    if part is not None:
        if part not in _PARTS:
            raise ConfigError(f"split is one of {', '.join(_PARTS)}, found {part!r}.")
        if split is None:
            raise ConfigError(f"split {part!r} needs split_json, the file that defines it.")
        chosen = {"train": split.train, "val": split.val, "test": split.test}[part]
    bad = [b.index for b in source.bad_inputs] if bad_samples == "exclude" else []
    if bad:
        chosen = np.setdiff1d(chosen, bad).astype(np.int64)
    return chosen
