"""Batch samplers that Lightning creates again: ``type(ours)(sampler, batch_size=…, drop_last=…)``.

The sampler that it passes says how the work is shared, but is of the bare dataset. What the first
batch sampler was set to can be found by its batch size alone, so that remembers whose it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from featurestore.errors import ConfigError
from featurestore.sampling.sharding import Shard, Shuffle

if TYPE_CHECKING:
    from featurestore.sampling.samplers import FeatureBatchSampler

# Lightning's sampler for predictions of several processes.
_PREDICTING = "UnrepeatedDistributedSampler"


class BatchSize(int):
    """A batch size that knows whose it is.

    Attributes:
        sampler: the sampler that has it.
    """

    sampler: FeatureBatchSampler

    def __new__(cls, size: int, sampler: FeatureBatchSampler) -> BatchSize:
        """The number ``size``, of ``sampler``."""
        owned = super().__new__(cls, size)
        owned.sampler = sampler
        return owned

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def taken_over(asked: Sampler[Any], batch_size: int) -> FeatureBatchSampler:
    """The batch sampler whose settings are to be taken over, because a sampler was passed.

    Raises:
        ConfigError: the batch size does not say which.
    """
    for size in (batch_size, getattr(asked, "batch_size", None)):
        if isinstance(size, BatchSize):
            return size.sampler
    raise ConfigError(
        f"A FeatureBatchSampler is of a dataset, found a {type(asked).__name__}.\n"
        "Pass the dataset, and shard=Shard.current() where there are several processes. If a "
        "training library\ncreates it again, have that leave samplers alone (in Lightning "
        "Trainer(use_distributed_sampler=False))."
    )


def order_for(asked: Sampler[Any], before: Shuffle | None) -> Shuffle | None:
    """How items are shuffled: as before, but predictions come in the dataset's order."""
    predicting = any(kind.__name__ == _PREDICTING for kind in type(asked).__mro__)
    return None if predicting or isinstance(asked, SequentialSampler) else before


def part_for(asked: Sampler[Any], before: Shard) -> Shard:
    """The part that a ``DistributedSampler`` asks for, without loss; else the part as before.

    Raises:
        ConfigError: it asks for a part of a part.
    """
    if not isinstance(asked, DistributedSampler):
        return before
    part = replace(before, rank=asked.rank, world_size=asked.num_replicas, chosen=True)
    if before.world_size > 1 and part != before:
        raise ConfigError(
            f"This sampler gives part {before.rank} of {before.world_size} and is asked for part "
            f"{part.rank} of {part.world_size}.\n"
            "Leave shard out, and Lightning shares the items; or keep it, with "
            "Trainer(use_distributed_sampler=False)."
        )
    return part
