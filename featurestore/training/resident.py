"""Keeps all features of a dataset in a device's memory, so that training reads no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featurestore.errors import ConfigError
from featurestore.sampling.ordering import Purpose, draws
from featurestore.system.limits import available_bytes
from featurestore.training.dataset import FeatureDataset
from featurestore.training.device import Batch, usable_device

_DRAWS = (None, "random", "pair")
_FIXED_VIEWS = ("all", "mean")
# Bytes per read while loading, so that the host needs no second copy of everything.
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Residency:
    """Options: which views to keep on the device, and which of them a batch uses.

    Attributes:
        views: numbers of the views to keep, for a dataset with ``views="all"``; None keeps all.
        draw: None returns items as the dataset does. For a dataset with ``views="all"``,
            ``random`` chooses one view per sample and epoch, and ``pair`` two different ones. Both
            depend on (seed, epoch, sample) alone, but differ from those of ``FeatureDataset``.
        seed: the seed of the random choices.
        dtype: the features' data type on the device, by default the dataset's; bfloat16 takes half
            the memory.
        spare_bytes: memory to leave free for the model, in bytes.
    """

    views: Sequence[int] | None = None
    draw: str | None = None
    seed: int = 0
    dtype: torch.dtype | None = None
    spare_bytes: int = 1 << 30


class ResidentFeatures:
    """A dataset's items on a device, scaled once; reading a batch is a gather on the device.

    The class has the interface that ``FeatureBatchSampler`` and ``DeviceBatches`` need.

    Attributes:
        device: the device of the tensors.
        indices: the sample in the store of each item, int64 ``[len]``, on the host.
        nbytes: memory used on the device, in bytes.
    """

    def __init__(
        self,
        dataset: FeatureDataset,
        device: torch.device | str = "cuda",
        keep: Residency = Residency(),
    ) -> None:
        """Copies a dataset's items, a block at a time.

        Args:
            dataset: a dataset with fixed views: ``clean``, a number, ``all`` or ``mean``.
            device: ``cpu``, ``cuda`` or ``cuda:1``.
            keep: options: which views to keep, and how.

        Raises:
            ConfigError: the items do not fit into memory, the device does not exist, or ``keep``
                does not fit the dataset.
        """
        self.device, self.indices, self.store = (
            usable_device(device),
            dataset.indices,
            dataset.store,
        )
        self._keep = keep
        first = dataset.batch([0])
        self._features = frozenset(dataset.features)
        # Tensors with an axis of views: features, and augmented labels.
        self._viewed = frozenset(
            name for name, rows in first.items() if dataset.views == "all" and rows.ndim == 3
        )
        self._check(dataset)
        shapes = {name: self._kept(name, rows) for name, rows in first.items()}
        self.nbytes = len(dataset) * sum(t.nbytes for t in shapes.values())
        self._require_room()
        self._tensors = self._allocate(len(dataset), shapes)
        step = max(1, _BLOCK_BYTES // sum(rows.nbytes for rows in first.values()))
        for start in range(0, len(dataset), step):
            stop = min(start + step, len(dataset))
            for name, rows in dataset.batch(range(start, stop)).items():
                self._tensors[name][start:stop].copy_(self._kept(name, rows))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # batches may be gathered on any stream
        self._drawn: torch.Tensor | None = None
        self._epoch: int | None = None
        self._streams: set[int] = set()
        self.set_epoch(dataset.epoch)

    def _check(self, dataset: FeatureDataset) -> None:
        keep = self._keep
        if keep.draw not in _DRAWS:
            raise ConfigError(f"draw is None, random or pair, found {keep.draw!r}.")
        if isinstance(dataset.views, str) and dataset.views not in _FIXED_VIEWS:
            raise ConfigError(
                f"A dataset with views={dataset.views!r} has other rows each epoch.\n"
                "Create it with views='all', and choose the draw here."
            )
        if dataset.views != "all":
            if keep.draw is not None or keep.views is not None:
                raise ConfigError("The options draw and views need a dataset with views='all'.")
            return
        count = dataset.store.spec.views
        kept = range(count) if keep.views is None else keep.views
        if not all(0 <= view < count for view in kept):
            raise ConfigError(f"views are 0 to {count - 1}, found {list(kept)}.")
        if len(set(kept)) < max(len(kept), 2 if keep.draw == "pair" else 1):
            raise ConfigError(f"views are different ones, two for a pair, found {list(kept)}.")

    def _kept(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The part of some items' rows to keep, on the host."""
        if name in self._viewed and self._keep.views is not None:
            rows = rows[:, list(self._keep.views)]
        if name in self._features and self._keep.dtype is not None:
            rows = rows.to(self._keep.dtype)
        return rows

    def _require_room(self) -> None:
        wanted, free = self.nbytes + self._keep.spare_bytes, _free_bytes(self.device)
        if wanted > free:
            raise ConfigError(
                f"{self.nbytes:,} bytes of features and {self._keep.spare_bytes:,} to spare do not "
                f"fit: {free:,} are free on {self.device}.\n"
                "Keep fewer features or views, use dtype=torch.bfloat16, or read them from the "
                "store with DeviceBatches."
            )

    def _allocate(self, count: int, shapes: Batch) -> Batch:
        try:
            return {
                name: torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=self.device)
                for name, like in shapes.items()
            }
        except (
            torch.OutOfMemoryError
        ) as e:  # another process took the memory, or free memory is fragmented
            raise ConfigError(
                f"{self.device} could not give {self.nbytes:,} bytes in one piece per feature, "
                f"though {_free_bytes(self.device):,} are free."
            ) from e

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the views of an epoch, once for all items."""
        if self._keep.draw is None or epoch == self._epoch:
            return
        self._epoch = epoch
        count = next(self._tensors[name].shape[1] for name in self._viewed)
        first = self._draw("views", epoch, count)
        if self._keep.draw == "random":
            drawn = first[:, None]
        else:
            other = (first + 1 + self._draw("other views", epoch, count - 1)) % count
            drawn = np.stack([first, other], axis=1)
        self._drawn = torch.from_numpy(drawn).to(self.device)

    def _draw(self, purpose: Purpose, epoch: int, count: int) -> np.ndarray:
        # Indexed by sample and not by item: a sample's view is the same in every split.
        drawn = draws(self._keep.seed, epoch, purpose, int(self.indices.max()) + 1)
        return (drawn[self.indices] % np.uint64(count)).astype(np.int64)

    def batch(self, items: Sequence[int] | torch.Tensor) -> Batch:
        """Several items as one dictionary of stacked tensors on the device.

        Args:
            items: numbers, or int64 ``[B]`` on the device, which are not checked.

        Returns:
            The tensors of the dataset's ``batch``; with a draw, features are ``[B, D]`` for
            ``random`` and ``[B, 2, D]`` for ``pair``, and augmented labels accordingly.

        Raises:
            IndexError: an item is out of range.
        """
        where = torch.as_tensor(items, dtype=torch.int64)
        if where.device != self.device or self.device.type == "cpu":
            if len(where) and not -len(self) <= int(where.min()) <= int(where.max()) < len(self):
                raise IndexError(f"items of a dataset of {len(self)}: {where.tolist()[:5]} ...")
            where = where.to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            self._record(torch.cuda.current_stream(self.device))
        return {name: self._take(name, rows, where) for name, rows in self._tensors.items()}

    def _record(self, stream: torch.cuda.Stream) -> None:
        """Delays the reuse of the tensors' memory until ``stream`` has read them."""
        if stream.cuda_stream not in self._streams:
            self._streams.add(stream.cuda_stream)
            for rows in self._tensors.values():
                rows.record_stream(stream)
        if self._drawn is not None:  # each epoch replaces this tensor
            self._drawn.record_stream(stream)

    def _take(self, name: str, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        if self._drawn is None or name not in self._viewed:
            return rows[where]
        taken = rows[where[:, None], self._drawn[where]]  # [B, 1 or 2, D]
        return taken[:, 0] if self._keep.draw == "random" else taken


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that torch has reserved but does not use is available to tensors too.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
