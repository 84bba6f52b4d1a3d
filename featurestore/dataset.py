"""Lazy random access to a store while training.

Rows come straight from the memory-mapped chunk files, a batch at a time: with ``num_workers=0`` a
``DataLoader`` reads at memory speed, and worker processes only make it slower. They work all the
same, under fork and spawn: a dataset is pickled as its arguments and maps the files again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from featurestore.errors import ConfigError, InputError
from featurestore.label_files import read_labels
from featurestore.rows import View, store_rows
from featurestore.scaling import scale_for
from featurestore.splits import Split, read_split
from featurestore.store import FeatureStore

Views = int | str
_VIEWS = ("clean", "all", "random", "mean")
_PARTS = ("train", "val", "test")

# Set by the random policy's hash; see _mix.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class FeatureDataset(Dataset[dict[str, torch.Tensor]]):
    """The samples of a store as tensors.

    An item is a dictionary: each feature as float32 ``[D]`` (``[V, D]`` for ``views="all"``),
    ``index`` (int64, the sample's row in the store), and ``labels`` (float32 ``[23]``) where
    ``labels_dir`` is given.

    Attributes:
        store: the store.
        features: the features that an item holds.
        indices: int64 ``[len]``, the store's sample behind each item.
        views: the view policy.
    """

    def __init__(
        self,
        store: Path | str,
        features: Iterable[str] | None = None,
        *,
        views: Views = "clean",
        split: str | None = None,
        split_json: Path | str | None = None,
        labels_dir: Path | str | None = None,
        zscore: str = "all",
        bad_samples: str = "exclude",
        seed: int = 0,
        checksum: bool = False,
    ) -> None:
        """Opens a complete store.

        Args:
            store: its folder.
            features: which features; all of them by default.
            views: ``clean`` (view 0), a view's number, ``all``, ``mean`` (over all views), or
                ``random``: one view per sample and epoch, drawn from (seed, epoch, sample) alone,
                so the same whatever the order and the number of workers; see :meth:`set_epoch`.
            split: ``train``, ``val`` or ``test``; every sample by default.
            split_json: the split file, needed for ``split`` and for ``zscore="train"``.
            labels_dir: a folder that the ``labels`` command wrote.
            zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``.
            bad_samples: ``exclude`` leaves samples with a placeholder out, ``include`` keeps them.
            seed: of the ``random`` policy.
            checksum: read every chunk of the features once and compare it with what was committed.
                Rows are mapped, so without it only the files' sizes are looked at, and a damaged
                disk gives damaged numbers.

        Raises:
            InputError: there is no complete store, or split or labels do not fit it.
            ConfigError: an argument is none of those above.
            CorruptStoreError: the store is damaged.
        """
        self._arguments: dict[str, Any] = {
            "store": str(store),
            "features": None if features is None else tuple(features),
            "views": views,
            "split": split,
            "split_json": split_json,
            "labels_dir": labels_dir,
            "zscore": zscore,
            "bad_samples": bad_samples,
            "seed": seed,
        }
        self.epoch = 0
        self._open()
        if checksum:
            for name in self.features:
                for chunk in range(self.store.spec.chunks):
                    self.store.read_chunk(name, chunk)

    def _open(self) -> None:
        a = self._arguments
        self.store = FeatureStore(a["store"])
        self.store.require_complete()
        self.features = _chosen_features(self.store, a["features"])
        self.views = _checked_views(a["views"], self.store.spec.views)
        split = None if a["split_json"] is None else read_split(a["split_json"], self.store.stems)
        self.indices = _chosen_samples(self.store, a["split"], split, a["bad_samples"])
        train = None if split is None else split.train
        self._rows = {
            name: store_rows(self.store, name, scale_for(self.store, name, a["zscore"], train))
            for name in self.features
        }
        self._labels = None
        if a["labels_dir"] is not None:
            self._labels = read_labels(Path(a["labels_dir"]), self.store.stems)

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "epoch": self.epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state["arguments"]
        self.epoch = state["epoch"]
        self._open()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draw of the ``random`` policy; call it before each epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch; torchdata's ``StatefulDataLoader`` brings it to its workers."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes the epoch over."""
        self.set_epoch(state["epoch"])

    @property
    def stems(self) -> list[str]:
        """The stem of each item."""
        stems = self.store.stems
        return [stems[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, item: int) -> dict[str, torch.Tensor]: ...

    @overload
    def __getitem__(self, item: slice) -> list[dict[str, torch.Tensor]]: ...

    def __getitem__(self, item: int | slice) -> dict[str, torch.Tensor] | list[Any]:
        """One item, or a slice of them as a list; negative numbers count from the end.

        Raises:
            IndexError: out of range.
        """
        if isinstance(item, slice):
            return self.__getitems__(range(len(self))[item])
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of a dataset of {len(self)}")
        batch = self._batch(self.indices[[item]])
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Several items with one read per feature; what ``DataLoader`` calls."""
        batch = self.batch(items)
        names, columns = list(batch), list(batch.values())
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def batch(self, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several items as one dictionary of stacked tensors: the fastest way to read."""
        return self._batch(self.indices[np.asarray(items, np.int64)])

    def _batch(self, samples: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        view = self._view(samples)
        batch = {n: torch.from_numpy(rows.take(samples, view)) for n, rows in self._rows.items()}
        batch["index"] = torch.from_numpy(samples)
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels[samples])
        return batch

    def _view(self, samples: npt.NDArray[np.int64]) -> View:
        if self.views == "random":
            draws = _mix(self._arguments["seed"], self.epoch, samples)
            return (draws % np.uint64(self.store.spec.views)).astype(np.int64)
        return self.views


def _mix(seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit number per (seed, epoch, sample): SplitMix64's output function, chained.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    with np.errstate(over="ignore"):
        state = np.zeros(samples.shape, np.uint64)
        # The seed is mixed before the epoch is added: (1, 0) must not draw what (0, 1) draws.
        for part in (np.uint64(seed % 2**64), np.uint64(epoch % 2**64), samples.astype(np.uint64)):
            state = (state ^ part) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


def _chosen_features(store: FeatureStore, asked: Sequence[str] | None) -> tuple[str, ...]:
    features = store.features if asked is None else tuple(asked)
    for name in features:
        if name not in store.features:
            held = ", ".join(store.features)
            raise ConfigError(f"{store.path} holds {held}, but not {name!r}.")
    return features


def _checked_views(views: Views, count: int) -> Views:
    if isinstance(views, str):
        if views not in _VIEWS:
            raise ConfigError(f"views is a number or one of {', '.join(_VIEWS)}, found {views!r}.")
        return 0 if views == "clean" else views
    if isinstance(views, bool) or not isinstance(views, int | np.integer):
        raise ConfigError(f"views is a number or one of {', '.join(_VIEWS)}, found {views!r}.")
    if not 0 <= views < count:
        raise ConfigError(f"The store has views 0 to {count - 1}, view {views} was asked for.")
    return views


def _chosen_samples(
    store: FeatureStore, part: str | None, split: Split | None, bad_samples: str
) -> npt.NDArray[np.int64]:
    if bad_samples not in ("exclude", "include"):
        raise ConfigError(f"bad_samples is exclude or include, found {bad_samples!r}.")
    chosen = np.arange(store.spec.samples, dtype=np.int64)
    if part is not None:
        if part not in _PARTS:
            raise ConfigError(f"split is one of {', '.join(_PARTS)}, found {part!r}.")
        if split is None:
            raise ConfigError(f"split {part!r} needs split_json, the file that defines it.")
        chosen = {"train": split.train, "val": split.val, "test": split.test}[part]
    if bad_samples == "exclude":
        chosen = np.setdiff1d(chosen, [b.index for b in store.bad_inputs]).astype(np.int64)
    if len(chosen) == 0:
        raise InputError(f"No sample of {store.path} is left for split {part!r}.")
    return chosen
