"""Batches that a ``DataLoader`` does not take apart to put them together again.

It asks a dataset for a list of items and stacks them: for 512 items of two tensors that is 1,024
small tensors made and copied, ten times the work of the read itself. A ``Batch`` looks like that
list, and torch's own collation hands its stacked tensors on as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map


class Item(dict[str, torch.Tensor]):
    """One item of a batch: a dictionary that collation knows by its type."""


class Batch(Sequence[Item]):
    """The items of a batch, made when they are looked at.

    Attributes:
        stacked: per name a tensor ``[B, ...]``.
    """

    def __init__(self, stacked: Mapping[str, torch.Tensor]) -> None:
        """Takes tensors of one length."""
        self.stacked = dict(stacked)

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    @overload
    def __getitem__(self, item: int) -> Item: ...

    @overload
    def __getitem__(self, item: slice) -> list[Item]: ...

    def __getitem__(self, item: int | slice) -> Item | list[Item]:
        if isinstance(item, slice):
            return [self[i] for i in range(len(self))[item]]
        return Item((name, tensor[item]) for name, tensor in self.stacked.items())

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; what a loader calls where it is not to collate."""
        return Batch({name: tensor.pin_memory() for name, tensor in self.stacked.items()})


def _collate(batch: Sequence[Item], *, collate_fn_map: Any = None) -> dict[str, torch.Tensor]:
    if isinstance(batch, Batch):
        return batch.stacked
    found: dict[str, torch.Tensor] = collate(
        [dict(item) for item in batch], collate_fn_map=collate_fn_map
    )
    return found


# The place that torch documents for types of one's own.
default_collate_fn_map[Item] = _collate
