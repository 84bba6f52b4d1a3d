"""Which items make which batch: shuffled near the disk, shared among processes, resumable.

    batches = FeatureBatchSampler(train, 512, shuffle=Shuffle(seed=0, window=64))
    loader = DataLoader(train, batch_sampler=batches)

An epoch's batches are a pure function of (seed, epoch, rank). A state is therefore two numbers, and
going on in the middle of an epoch costs no more than starting one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from featurestore import ordering
from featurestore.errors import ConfigError
from featurestore.ordering import Integers
from featurestore.readahead import Readahead
from featurestore.sharding import Shard, Shuffle

_STATE_VERSION = 1


class FeatureBatchSampler(Sampler[list[int]]):
    """Batches of items for ``DataLoader(dataset, batch_sampler=...)``.

    All ranks make the same number of batches, so that no collective operation of DDP waits for a
    rank that has finished. With ``even="keep"`` the last ones may differ by an item;
    :meth:`weight` makes DDP's average of the gradients exact again.

    An epoch that was walked through is followed by the next; :meth:`set_epoch` chooses one. Either
    way the dataset's ``set_epoch`` is called with it, where it has one, so that its random views
    are redrawn. Lightning finds :meth:`set_epoch` by itself.

    Attributes:
        batch_size: items in a batch of one rank.
        shuffle: how; None for the dataset's own order.
        shard: which part of it.
        drop_last: whether the batch that is not full is left out, on every rank.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        shuffle: Shuffle | None = Shuffle(),  # noqa: B008  it is frozen
        shard: Shard = Shard(),  # noqa: B008
        drop_last: bool = False,
    ) -> None:
        """Makes the batches of ``dataset``.

        Args:
            dataset: a ``FeatureDataset``, or anything with a length where no window is asked for.
            batch_size: items in a batch of one rank.
            shuffle: how an epoch is shuffled; None for the dataset's order.
            shard: which part of it is this process's; ``Shard.current()`` asks torch.distributed.
            drop_last: whether the batch that is not full is left out.

        Raises:
            ConfigError: a rank would have no batch, or one without an item; or there is a window
                but the dataset knows no chunks.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, found {batch_size}.")
        if not (shuffle is None or isinstance(shuffle, Shuffle)):
            raise ConfigError(f"shuffle is a Shuffle or None, found {shuffle!r}.")
        self.batch_size, self.shuffle, self.shard = batch_size, shuffle, shard
        self.drop_last = drop_last
        self._dataset: Any = dataset
        self._count = len(dataset)
        self._chunk_of = _chunks_of(dataset) if shuffle and shuffle.window else None
        self._steps = self._checked_steps()
        self._of = self._identity()  # once: a state may be asked for at every step
        self._epoch = 0
        self._start = 0  # where the next epoch to be walked through begins
        self._done = 0  # batches handed out of the current one

    def _checked_steps(self) -> int:
        sizes = [len(self.shard.part(self._count, r)) for r in (0, self.shard.world_size - 1)]
        most, fewest = sizes
        steps = fewest // self.batch_size if self.drop_last else -(-most // self.batch_size)
        if steps == 0 or fewest < steps:
            raise ConfigError(
                f"{self._count:,} items do not give each of {self.shard.world_size} ranks as many "
                f"batches of {self.batch_size}.\n"
                "Use smaller or fewer parts, drop_last=False, or even='pad'."
            )
        return steps

    def __len__(self) -> int:
        """Batches of one rank in an epoch; the same on every rank."""
        return self._steps

    @property
    def items(self) -> int:
        """Items of this rank in an epoch, those that ``drop_last`` leaves out not counted."""
        return self._stop(self._steps - 1, self.shard.rank)

    @property
    def epoch(self) -> int:
        """The epoch that is being walked through, or is next."""
        return self._epoch

    @property
    def sampler(self) -> FeatureBatchSampler:
        """Itself: Lightning calls ``set_epoch`` of a batch sampler's sampler."""
        return self

    def _stop(self, step: int, rank: int) -> int:
        """Where a batch of a rank ends, in the rank's items."""
        stop = (step + 1) * self.batch_size
        if self.drop_last:
            return stop
        # Each batch to come keeps at least one item: the rank with one less might have run out.
        return min(stop, len(self.shard.part(self._count, rank)) - (self._steps - 1 - step))

    def size(self, step: int, rank: int | None = None) -> int:
        """Items of a batch, of this rank by default.

        Raises:
            IndexError: an epoch has no such step.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of an epoch of {self._steps}")
        rank = self.shard.rank if rank is None else rank
        return self._stop(step, rank) - (self._stop(step - 1, rank) if step else 0)

    def weight(self, step: int) -> float:
        """What to multiply this rank's mean loss with: its items over the mean of all ranks'.

        DDP takes the mean of the ranks' gradients as if their batches were of one size. With this
        it is the gradient of the mean over all items. 1.0 but for an epoch's last steps.
        """
        ranks = range(self.shard.world_size)
        return self.size(step) * len(ranks) / sum(self.size(step, rank) for rank in ranks)

    def order(self) -> Integers:
        """This rank's items of the current epoch, int64 ``[m]``, in the order they are used."""
        shuffle, chunk_of = self.shuffle, self._chunk_of
        if shuffle is None:
            everything = np.arange(self._count)
        elif chunk_of is None:
            everything = ordering.permutation(self._count, shuffle.seed, self._epoch)
        else:
            everything = ordering.chunk_by_chunk(chunk_of, shuffle.seed, self._epoch)
        part = self.shard.part(self._count)
        mine = everything.take(np.arange(part.start, part.stop), mode="wrap")
        if shuffle is None or shuffle.window is None or chunk_of is None:
            return mine
        return ordering.shuffle_windows(mine, chunk_of, shuffle.window, shuffle.seed, self._epoch)

    def __iter__(self) -> Iterator[list[int]]:
        # Here and not in the generator, which starts late: workers copy the dataset before that.
        self._tell_dataset()
        self._done = self._start
        return self._walk()

    def _walk(self) -> Iterator[list[int]]:
        # Loaders make iterators that they never start; only one that starts uses up the position.
        start, self._start = self._start, 0
        epoch, order = self._epoch, self.order()
        ahead = self._readahead(order, self._stop(start - 1, self.shard.rank) if start else 0)
        for step in range(start, self._steps):
            self._done = step + 1
            stop = self._stop(step, self.shard.rank)
            if ahead is not None:
                ahead.reach(stop)
            yield order[stop - self.size(step) : stop].tolist()
        if self._epoch == epoch:  # the dataset is told later: workers may still be reading for it
            self._epoch, self._done = epoch + 1, 0

    def _readahead(self, order: Integers, position: int) -> Readahead | None:
        shuffle, chunk_of = self.shuffle, self._chunk_of
        if shuffle is None or shuffle.window is None or chunk_of is None or not shuffle.readahead:
            return None
        ahead = Readahead(self._dataset, chunk_of[order], shuffle.window)
        ahead.skip(position)
        return ahead

    def set_epoch(self, epoch: int) -> None:
        """Makes this the current epoch; where it is already, what was loaded or done stays."""
        if epoch != self._epoch:
            self._epoch, self._start, self._done = epoch, 0, 0
        self._tell_dataset()

    def _tell_dataset(self) -> None:
        tell = getattr(self._dataset, "set_epoch", None)
        if tell is not None:
            tell(self._epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, and what it is an epoch of: numbers, strings and None only.

        All ranks are at the same place, so one rank's state does for all.
        """
        return {**self._of, "epoch": self._epoch, "batch": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next walk goes on where :meth:`state_dict` was asked.

        Raises:
            ConfigError: the state is of other items, or was made with other arguments, and would
                repeat some items and leave others out.
        """
        for name, now in self._of.items():
            if state.get(name) != now:
                raise ConfigError(
                    f"The sampler's state is of another {name.replace('_', ' ')}.\n"
                    f"  stored: {state.get(name)}\n  now:    {now}\n"
                    "Go on with the same, or start an epoch without the state."
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(batch, int) or not 0 <= batch <= len(self):
            raise ConfigError(f"No state of this sampler: epoch {epoch!r}, batch {batch!r}.")
        self._epoch, self._start, self._done = epoch, batch, batch
        self._tell_dataset()

    def _identity(self) -> dict[str, Any]:
        indices = getattr(self._dataset, "indices", None)
        data = b"" if indices is None else np.ascontiguousarray(indices, "<i8").tobytes()
        return {
            "version": _STATE_VERSION,
            "dataset_length": self._count,
            "samples_sha256": hashlib.sha256(data).hexdigest(),
            "seed": None if self.shuffle is None else self.shuffle.seed,
            "window": None if self.shuffle is None else self.shuffle.window,
            "chunk": None if self._chunk_of is None else _chunk_size(self._dataset),
            "world_size": self.shard.world_size,
            "even": self.shard.even,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }


def _chunk_size(dataset: Any) -> int:
    return int(dataset.store.spec.chunk)


def _chunks_of(dataset: Any) -> Integers:
    """The chunk of each item, int64 ``[len]``."""
    try:
        indices, size = dataset.indices, _chunk_size(dataset)
    except AttributeError:
        raise ConfigError(
            f"A window of chunks needs a FeatureDataset, found a {type(dataset).__name__}.\n"
            "Use Shuffle(window=None) for other datasets."
        ) from None
    return np.asarray(indices, np.int64) // size
