"""Lazy random access to a store, or to materialized files, while training.

Rows come directly from memory-mapped files, a batch at a time: with ``num_workers=0`` a
``DataLoader`` reads at memory speed, and worker processes only slow it down. Workers are supported
nevertheless, with fork and spawn: a dataset is pickled as its arguments and maps the files again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from featurestore.errors import InputError
from featurestore.imdb.view_labels import open_labels
from featurestore.reading.mapping import Advice
from featurestore.reading.sources import (
    FeatureSource,
    check_content,
    chosen_chunks,
    content_crc32c,
    open_rows,
    open_source,
    presence,
    require_unchanged,
    resolve_advice,
)
from featurestore.reading.views import Views, view_policy
from featurestore.sampling.callers import counted_epoch
from featurestore.training.arguments import Arguments, Opened, listed
from featurestore.training.collate import Batch
from featurestore.training.epoch import LocalEpoch, SharedEpoch


class FeatureDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples as tensors.

    An item is a dictionary: each feature as ``[D]`` (``[V, D]`` for ``views="all"``, ``[2, D]`` for
    ``"pair"``), ``index`` (int64, the sample's row in the store), and ``labels`` if requested:
    float32 ``[C]`` of several classes, int64 of one class (-1 for none), or float32 of a value.
    ``labels="augmented"``, of several classes only, have the shape of the features, with C instead
    of D. Floats of samples without a label are NaN. With ``missing="zero"``, ``present`` is bool
    ``[F]``: whether the sample has the input of each of the F features, in their order.

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
        missing: str = "exclude",
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
            labels_dir: a folder that the ``labels`` command wrote, of this collection.
            labels: ``base``, the clean labels of a sample; or ``augmented``, with the published
                noise of each view that is read (for ``mean``, their mean): from the file that
                ``labels --augment`` wrote to ``labels_dir`` or to the folder of materialized files,
                else computed from those of ``labels_dir``.
            zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``; for materialized
                files, the scaling that they already have.
            bad_samples: ``exclude`` omits samples with a placeholder, ``include`` keeps them;
                ``zscore="train"`` never uses them.
            missing: ``exclude`` omits samples that lack the input of one of the features (an image,
                or a text); ``zero`` keeps them: their rows of that feature are zeros, whatever the
                z-score, and ``present`` in each item says so.
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
        self._arguments = Arguments(
            store=str(store),
            features=listed(features),
            views=views,
            split=split,
            split_json=split_json,
            labels_dir=labels_dir,
            labels=labels,
            zscore=zscore,
            bad_samples=bad_samples,
            missing=missing,
            seed=seed,
            dtype=dtype,
            prefix=prefix,
            advice=advice,
        )
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
        opened: Opened | None,
    ) -> None:
        """Opens the source with the stored arguments; in a worker, uses the state ``opened``."""
        a = self._arguments
        self.store, self._chunks = source, chunks
        self.features = a.chosen_features(source)
        self._policy = view_policy(a.views, source.spec.views, a.seed)
        self.views = self._policy.views
        split = a.read_split(source) if opened is None else None
        present = presence(source, self.features)
        self._present = present if a.missing == "zero" else None
        if opened is None:
            self.indices = a.chosen_samples(source, split, chunks, present)
        else:
            self.indices = opened.indices
        train = None if split is None else split.train
        scales = None if opened is None else opened.scales
        sparse = self._policy.is_one
        advice = resolve_advice(source, self.features, a.advice, chunks, sparse=sparse)
        self._rows = open_rows(source, self.features, a.zscore, train, advice, chunks, scales)
        require_unchanged(source, self.features, chunks)
        folder = None if a.labels_dir is None else Path(a.labels_dir)
        self._labels = open_labels(a.labels, folder, source)

    def __getstate__(self) -> dict[str, Any]:
        scales = {name: rows.scale for name, rows in self._rows.items()}
        opened = Opened(
            self.store.spec,
            content_crc32c(self.store, self.features, self._chunks),
            self.indices,
            scales if self._arguments.zscore == "train" else None,
        )
        return {
            "arguments": self._arguments,
            "opened": opened,
            "chunks": self._chunks,
            "epoch": self._epoch,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments, self._epoch = state["arguments"], state["epoch"]
        source = open_source(self._arguments.store, self._arguments.prefix)
        opened: Opened | None = state.get("opened")
        if opened is None:
            raise InputError("This dataset was pickled by another version.\nCreate it again.")
        opened.require_shape(source)
        self._open(source, state["chunks"], opened)
        opened.require_content(source, content_crc32c(source, self.features, self._chunks))

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
        batch, dtype = {}, self._arguments.dtype
        for name, rows in self._rows.items():
            tensor = torch.from_numpy(rows.take(samples, view))
            batch[name] = tensor if dtype is torch.float32 else tensor.to(dtype)
        batch["index"] = torch.from_numpy(samples)
        if self._present is not None:
            batch["present"] = torch.from_numpy(self._present[samples])
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels.take(samples, view))
        return batch
