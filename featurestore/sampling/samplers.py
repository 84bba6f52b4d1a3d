"""A batch sampler with shuffling by chunks, shards for several processes, and resumable epochs.

    batches = FeatureBatchSampler(train, 512, shuffle=Shuffle(seed=0, window=64))
    loader = DataLoader(train, batch_sampler=batches)

An epoch's batches are a pure function of (seed, epoch, rank). Two numbers are therefore enough to
save the state, and resuming in the middle of an epoch takes no longer than starting one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from featurestore.errors import ConfigError
from featurestore.reading.readahead import Readahead
from featurestore.sampling import ordering
from featurestore.sampling.callers import is_overfitting
from featurestore.sampling.epochs import Epochs
from featurestore.sampling.ordering import Integers
from featurestore.sampling.recreation import BatchSize, order_for, part_for, taken_over
from featurestore.sampling.sharding import Shard, Shuffle
from featurestore.sampling.wrappers import (
    chunk_size,
    chunks_of,
    epoch_holders,
    only_store,
    samples_of,
)

_STATE_VERSION = 1


class FeatureBatchSampler(Sampler[list[int]]):
    """Batches of items for ``DataLoader(dataset, batch_sampler=...)``.

    All ranks get the same number of batches, so that no collective operation of DDP waits for a
    rank that has finished. With ``even="keep"`` the sizes of the last batches may differ by one;
    :meth:`weight` makes DDP's average of the gradients exact again.

    **Epochs.** The epoch of an iterator is fixed when its first batch is requested. It is, in order
    of precedence: the epoch that :meth:`load_state_dict` loaded, once; the epoch that
    :meth:`set_epoch` chose since the previous iterator started; the epoch after that of the
    previous iterator; epoch 0. So an epoch that was left early is not repeated, and an iterator
    that is created but never used has no effect. The epoch is passed to every ``set_epoch`` beneath
    ``dataset``, also through ``Subset`` and ``ConcatDataset``, so that random views change. With
    ``num_workers=0``, iterators of different epochs may be used in turn: the dataset is set to an
    iterator's epoch before each batch.

    **Training libraries.** When Lightning recreates the batch sampler, the new one has the same
    settings and this process's shard. Several processes refuse a sampler without a chosen shard,
    and a sampler with a shard refuses to be shared out again by Accelerate. While a Lightning
    ``Trainer`` overfits, every epoch is the first.

    Attributes:
        shuffle: the shuffle of the items; None for the dataset's order.
        shard: the part of the epoch that this process reads.
        drop_last: whether a last batch that is not full is left out, on every rank.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008  it is frozen
        shard: Shard = Shard(chosen=False),  # noqa: B008
        drop_last: bool = False,
    ) -> None:
        """Prepares the batches of ``dataset``.

        Args:
            dataset: a ``FeatureDataset``, torch's ``Subset`` or ``ConcatDataset`` of them, or,
                without a window, any object with a length. Lightning passes a sampler and the
                :attr:`batch_size` of the sampler whose settings to copy.
            batch_size: items per batch of one rank.
            shuffle: the shuffle of an epoch; None for the dataset's order.
            shard: the part of an epoch for this process; ``Shard.current()`` gets it from
                torch.distributed. The default is the whole epoch, which several processes refuse.
            drop_last: whether a last batch that is not full is left out.

        Raises:
            ConfigError: a rank would have no batch, or a batch without items; there is a window
                but the dataset has no chunks; or the settings of a passed sampler are unknown.
        """
        self._epochs = Epochs()
        if isinstance(dataset, Sampler):
            before = taken_over(dataset, batch_size)
            shuffle, shard = order_for(dataset, before.shuffle), part_for(dataset, before.shard)
            self._epochs = before._place_for(shard)
            dataset = before._dataset
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, found {batch_size}.")
        if not (shuffle is None or isinstance(shuffle, Shuffle)):
            raise ConfigError(f"shuffle is a Shuffle or None, found {shuffle!r}.")
        self.shuffle: Shuffle | None = shuffle
        self.shard: Shard = shard
        self._size, self.drop_last = int(batch_size), drop_last
        self._dataset: Any = dataset
        self._count = len(dataset)
        self._chunk_of = chunks_of(dataset) if shuffle and shuffle.window else None
        self._steps = self._checked_steps()
        self._of = self._identity()  # computed once: state_dict may be called at every step
        self._holders = epoch_holders(dataset)

    @property
    def batch_size(self) -> int:
        """Items in a batch of one rank."""
        return BatchSize(self._size, self)

    def _checked_steps(self) -> int:
        sizes = [len(self.shard.part(self._count, r)) for r in (0, self.shard.world_size - 1)]
        most, fewest = sizes
        steps = fewest // self._size if self.drop_last else -(-most // self._size)
        if steps == 0 or fewest < steps:
            raise ConfigError(
                f"{self._count:,} items do not give each of {self.shard.world_size} ranks as many "
                f"batches of {self._size}.\n"
                "Use smaller or fewer parts, drop_last=False, or even='pad'."
            )
        return steps

    def __len__(self) -> int:
        """Batches of one rank in an epoch; the same on every rank."""
        return self._steps

    @property
    def items(self) -> int:
        """Items of this rank in an epoch, without those that ``drop_last`` leaves out."""
        return self._stop(self._steps - 1, self.shard.rank)

    @property
    def epoch(self) -> int:
        """The epoch of the batch returned last, or of the next batch at the start of an epoch."""
        return self._epochs.epoch

    @property
    def sampler(self) -> FeatureBatchSampler:
        """This object: Lightning calls ``set_epoch`` of a batch sampler's sampler."""
        return self

    @property
    def batch_sampler(self) -> FeatureBatchSampler:
        """This object: Transformers' Trainer calls ``set_epoch`` of the wrapped batch sampler."""
        return self

    def _stop(self, step: int, rank: int) -> int:
        """The end position of a batch among the items of a rank."""
        stop = (step + 1) * self._size
        if self.drop_last:
            return stop
        # Leaves at least one item for each later batch, also on a rank with one item less.
        return min(stop, len(self.shard.part(self._count, rank)) - (self._steps - 1 - step))

    def size(self, step: int, rank: int | None = None) -> int:
        """Number of items in a batch, of this rank by default.

        Raises:
            IndexError: an epoch has no such step.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of an epoch of {self._steps}")
        rank = self.shard.rank if rank is None else rank
        return self._stop(step, rank) - (self._stop(step - 1, rank) if step else 0)

    def weight(self, step: int) -> float:
        """The factor for this rank's mean loss: its batch size over the mean of all ranks'.

        DDP averages the ranks' gradients as if their batches had equal sizes. With this factor, the
        average is the gradient of the mean over all items; 1.0 except in an epoch's last steps.
        """
        ranks = range(self.shard.world_size)
        return self.size(step) * len(ranks) / sum(self.size(step, rank) for rank in ranks)

    def order(self) -> Integers:
        """This rank's items of the current epoch in the order of their use, int64 ``[m]``."""
        return self._order(self.epoch)

    def _order(self, epoch: int) -> Integers:
        shuffle, chunk_of = self.shuffle, self._chunk_of
        if shuffle is None:
            everything = np.arange(self._count)
        elif chunk_of is None:
            everything = ordering.permutation(self._count, shuffle.seed, epoch)
        else:
            everything = ordering.chunk_by_chunk(chunk_of, shuffle.seed, epoch)
        part = self.shard.part(self._count)
        mine = everything.take(np.arange(part.start, part.stop), mode="wrap")
        if shuffle is None or shuffle.window is None or chunk_of is None:
            return mine
        return ordering.shuffle_windows(mine, chunk_of, shuffle.window, shuffle.seed, epoch)

    def __iter__(self) -> Iterator[list[int]]:
        """An iterator over the batches of an epoch; the class explains which epoch."""
        self.shard.require_one_part()
        self._epochs.show_next()
        # Also set here, because workers copy the dataset before the generator starts.
        self._set_epoch_beneath()
        return self._walk()

    def _walk(self) -> Iterator[list[int]]:
        epoch, start = self._epochs.begin(repeat=is_overfitting())
        order = self._order(epoch)
        ahead = self._readahead(order, self._stop(start - 1, self.shard.rank) if start else 0)
        for step in range(start, self._steps):
            self._epochs.step(epoch, step + 1)
            self._set_epoch_beneath()  # another iterator may have set another epoch
            stop = self._stop(step, self.shard.rank)
            if ahead is not None:
                ahead.reach(stop)
            yield order[stop - self.size(step) : stop].tolist()
        # The dataset gets the next epoch later: workers may still be reading this one.
        self._epochs.end(epoch, repeat=is_overfitting())

    def _readahead(self, order: Integers, position: int) -> Readahead | None:
        shuffle, chunk_of = self.shuffle, self._chunk_of
        if shuffle is None or shuffle.window is None or chunk_of is None or not shuffle.readahead:
            return None
        ahead = Readahead(only_store(self._dataset), chunk_of[order], shuffle.window)
        ahead.skip(position)
        return ahead

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iterator; keeps a loaded position in the same epoch."""
        if not is_overfitting():
            self._epochs.choose(epoch)
            self._set_epoch_beneath()

    def _set_epoch_beneath(self) -> None:
        for holder in self._holders:
            holder.set_epoch(self._epochs.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch and the settings: only numbers, strings and None.

        All ranks are at the same position, so one rank's state is enough for all.
        """
        return {**self._of, "epoch": self._epochs.epoch, "batch": self._epochs.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator continue at the position that :meth:`state_dict` saved.

        Raises:
            ConfigError: the state belongs to other items or settings, so that some items would be
                repeated and others left out.
        """
        for name, now in self._of.items():
            if state.get(name) != now:
                raise ConfigError(
                    f"The sampler's state is of another {name.replace('_', ' ')}.\n"
                    f"  stored: {state.get(name)}\n  now:    {now}\n"
                    "Continue with the stored one, or start an epoch without the state."
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int) or not 0 <= batch <= len(self):
            raise ConfigError(f"No state of this sampler: epoch {epoch!r}, batch {batch!r}.")
        self._epochs.load(epoch, batch)
        self._set_epoch_beneath()

    def _place_for(self, shard: Shard) -> Epochs:
        """The position that a copy of this sampler starts from; Lightning makes such copies.

        Args:
            shard: the part of the items that the copy yields.

        Raises:
            ConfigError: ``shard`` is not this sampler's, and this one is in the middle of an epoch,
                where the two would have other positions.
        """
        if self._epochs.next_batch and shard != self.shard:
            raise ConfigError(
                f"A state was loaded for one of {self.shard.world_size} shards, but one of "
                f"{shard.world_size} was requested.\n"
                "Load it into a sampler that has shard=Shard.current()."
            )
        return replace(self._epochs)

    def _identity(self) -> dict[str, Any]:
        samples = samples_of(self._dataset)
        data = b"" if samples is None else np.ascontiguousarray(samples, "<i8").tobytes()
        return {
            "version": _STATE_VERSION,
            "dataset_length": self._count,
            "samples_sha256": hashlib.sha256(data).hexdigest(),
            "seed": None if self.shuffle is None else self.shuffle.seed,
            "window": None if self.shuffle is None else self.shuffle.window,
            "chunk": None if self._chunk_of is None else chunk_size(self._dataset),
            "world_size": self.shard.world_size,
            "even": self.shard.even,
            "batch_size": self._size,
            "drop_last": self.drop_last,
        }
