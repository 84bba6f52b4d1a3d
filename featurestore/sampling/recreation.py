"""Supports Lightning, which recreates samplers: ``type(s)(sampler, batch_size=…, drop_last=…)``.

The sampler that Lightning passes defines how the work is shared, but lacks the settings of the
first batch sampler. Of that one, Lightning passes only the batch size, which therefore refers to
its sampler.
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
    """A batch size that refers to its sampler.

    Attributes:
        sampler: the batch sampler that has this batch size.
    """

    sampler: FeatureBatchSampler

    def __new__(cls, size: int, sampler: FeatureBatchSampler) -> BatchSize:
        """Creates the number ``size`` with a reference to ``sampler``."""
        owned = super().__new__(cls, size)
        owned.sampler = sampler
        return owned

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def taken_over(asked: Sampler[Any], batch_size: int) -> FeatureBatchSampler:
    """The batch sampler whose settings a recreated one copies, found through the batch size.

    Raises:
        ConfigError: the batch size does not refer to a sampler.
    """
    for size in (batch_size, getattr(asked, "batch_size", None)):
        if isinstance(size, BatchSize):
            return size.sampler
    raise ConfigError(
        f"A FeatureBatchSampler takes a dataset, found a {type(asked).__name__}.\n"
        "Pass the dataset, and shard=Shard.current() if there are several processes. If a "
        "training library\nrecreates samplers, turn that off (in Lightning with "
        "Trainer(use_distributed_sampler=False))."
    )


def order_for(asked: Sampler[Any], before: Shuffle | None) -> Shuffle | None:
    """The shuffle of a recreated sampler: unchanged, but None for predictions."""
    predicting = any(kind.__name__ == _PREDICTING for kind in type(asked).__mro__)
    return None if predicting or isinstance(asked, SequentialSampler) else before


def part_for(asked: Sampler[Any], before: Shard) -> Shard:
    """The shard of a recreated sampler: that of a ``DistributedSampler``, else unchanged.

    Raises:
        ConfigError: the ``DistributedSampler`` would divide a shard again.
    """
    if not isinstance(asked, DistributedSampler):
        return before
    part = replace(before, rank=asked.rank, world_size=asked.num_replicas, chosen=True)
    if before.world_size > 1 and part != before:
        raise ConfigError(
            f"This sampler reads shard {before.rank} of {before.world_size}, but shard "
            f"{part.rank} of {part.world_size} was requested.\n"
            "Leave shard out, and Lightning shares the items; or keep it, with "
            "Trainer(use_distributed_sampler=False)."
        )
    return part
