"""Settings for the shuffle of an epoch and for the part of it that a process reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from featurestore.errors import ConfigError
from featurestore.sampling.callers import sharing_wrapper

_EVEN = ("keep", "pad", "drop")


@dataclass(frozen=True, slots=True)
class Shuffle:
    """The shuffle of an epoch.

    Attributes:
        seed: the seed for all epochs; each epoch has another order.
        window: None shuffles all items together. For stores larger than memory, a number of chunks:
            chunks come in random order, and items are shuffled within this many chunks, so that
            batches read from no more than these at a time.
        readahead: whether whole chunks of the next window are read from the disk in the background.
            Useful for ``views="all"`` and for slow disks; slower for single views on a fast disk.

    Raises:
        ConfigError: the window is less than 1, or ``readahead`` is set without a window.
    """

    seed: int = 0
    window: int | None = None
    readahead: bool = False

    def __post_init__(self) -> None:
        if self.readahead and self.window is None:
            raise ConfigError("Reading ahead needs a window, whose chunks it reads.")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"A window of a shuffle is 1 chunk or more, found {self.window}.")


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of every epoch that this process trains on.

    Attributes:
        rank: the number of this process, from 0.
        world_size: the number of processes.
        even: the treatment of the ``n % world_size`` remaining items. ``keep``: no item is dropped
            or repeated; some ranks get one item more, but the same number of batches. ``pad``: some
            items are repeated, so that all ranks get equally many. ``drop``: the remaining items
            are left out, different ones in each epoch if items are shuffled.
        chosen: whether the user chose this shard: False for a sampler's default, and for the result
            of :meth:`current` without a process group. Several processes refuse a shard that was
            not chosen, because each of them would read everything.

    Raises:
        ConfigError: the rank or ``even`` is invalid.
    """

    rank: int = 0
    world_size: int = 1
    even: str = "keep"
    chosen: bool = field(default=True, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank is 0 to {self.world_size - 1}, found {self.rank}.")
        if self.even not in _EVEN:
            raise ConfigError(f"even is one of {', '.join(_EVEN)}, found {self.even!r}.")

    @classmethod
    def current(cls, even: str = "keep") -> Shard:
        """This process's shard in the default process group; everything without a group."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(even=even, chosen=False)
        return cls(distributed.get_rank(), distributed.get_world_size(), even)

    def require_one_part(self) -> None:
        """Refuses a shard with which items would be read twice or left out.

        Raises:
            ConfigError: Accelerate would divide the batches of a shard again, or the shard was not
                chosen, and there are several processes.
        """
        wrapper = sharing_wrapper()
        if wrapper is None:
            self._require_choice()
        elif self.world_size > 1:
            raise ConfigError(
                f"Accelerate ({wrapper}) would divide batches that are already one of "
                f"{self.world_size} shards: items would be left out.\n"
                "Leave shard out and let Accelerate share, or keep it and do not pass this loader "
                "to prepare()."
            )

    def _require_choice(self) -> None:
        """Refuses a default shard if the default process group has several processes."""
        processes = Shard.current().world_size
        if not self.chosen and processes > 1:
            raise ConfigError(
                f"Each of the {processes} processes would read everything: this sampler has no "
                "shard, or one from before the process group existed.\n"
                "Create it with shard=Shard.current() in the running processes (in Lightning: in "
                "train_dataloader),\nor with shard=Shard() if each process is to read everything."
            )

    def dealt(self, count: int) -> int:
        """The total number of items that all ranks get, of ``count``."""
        if self.even == "keep":
            return count
        each = count // self.world_size if self.even == "drop" else -(-count // self.world_size)
        return each * self.world_size

    def part(self, count: int, rank: int | None = None) -> range:
        """Positions of a rank's items in the epoch's order; this rank's by default.

        With ``pad``, positions from ``count`` on refer to the beginning of the order again.
        """
        rank = self.rank if rank is None else rank
        each, more = divmod(self.dealt(count), self.world_size)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))
