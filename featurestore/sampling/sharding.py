"""How an epoch is shuffled, and which part of it a process gets."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from featurestore.errors import ConfigError

_EVEN = ("keep", "pad", "drop")


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How an epoch is shuffled.

    Attributes:
        seed: of all epochs; each has an order of its own.
        window: None for one shuffle of everything. A number of chunks for stores larger than
            memory: chunks come in random order and items are shuffled within so many of them, so
            that while a batch is read, no more than these chunks are.
        readahead: whether chunks of the next window are read from the disk meanwhile, as a whole.
            For ``views="all"`` and for slow disks; a fast one finds single views quicker alone.

    Raises:
        ConfigError: the window holds no chunk, or there is none to read ahead for.
    """

    seed: int = 0
    window: int | None = None
    readahead: bool = False

    def __post_init__(self) -> None:
        if self.readahead and self.window is None:
            raise ConfigError("Reading ahead needs a window: it is of the window's chunks.")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"A window of a shuffle is 1 chunk or more, found {self.window}.")


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of every epoch this process trains on.

    Attributes:
        rank: this process, from 0.
        world_size: how many there are.
        even: what happens to the ``n % world_size`` items that do not go round. ``keep``: nothing
            is dropped or repeated; some ranks get one item more, and the same number of batches.
            ``pad``: some items are repeated, so that all get as many. ``drop``: they are left out,
            others each epoch where items are shuffled.
        chosen: whether somebody decided on it: False for what a sampler has by default, and for
            what :meth:`current` gives where there is no process group. Several processes refuse
            such a part, because each of them would read everything.

    Raises:
        ConfigError: there is no such rank, or ``even`` is none of these.
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
        """This process's part of the default process group; everything where there is none."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(even=even, chosen=False)
        return cls(distributed.get_rank(), distributed.get_world_size(), even)

    def require_choice(self) -> None:
        """Refuses a part that nobody chose where the default process group has several processes.

        Raises:
            ConfigError: it is one.
        """
        processes = Shard.current().world_size
        if not self.chosen and processes > 1:
            raise ConfigError(
                f"Each of the {processes} processes would read everything: this sampler has no "
                "shard, or one from before the process group existed.\n"
                "Create it with shard=Shard.current() in the running processes (in Lightning: in "
                "train_dataloader),\nor with shard=Shard() if each process is to read everything."
            )

    def dealt(self, count: int) -> int:
        """How many items all ranks get together, of ``count``."""
        if self.even == "keep":
            return count
        each = count // self.world_size if self.even == "drop" else -(-count // self.world_size)
        return each * self.world_size

    def part(self, count: int, rank: int | None = None) -> range:
        """Positions of a rank's items in the epoch's order; this rank's by default.

        Positions from ``count`` on, which ``pad`` makes, stand for the order's begin again.
        """
        rank = self.rank if rank is None else rank
        each, more = divmod(self.dealt(count), self.world_size)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))
