"""Batches that a ``DataLoader`` does not split into items and stack again.

A ``DataLoader`` reads a list of items from a dataset and stacks them: for 512 items of two tensors
it creates and copies 1,024 small tensors, ten times the work of reading. A ``Batch`` has the
interface of that list, and torch's collation returns its stacked tensors unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map


class Item(dict[str, torch.Tensor]):
    """One item of a batch: a dictionary that collation recognizes by its type."""


class Batch(Sequence[Item]):
    """The items of a batch, created when they are accessed.

    Attributes:
        stacked: tensors ``[B, ...]`` by name.
    """

    def __init__(self, stacked: Mapping[str, torch.Tensor]) -> None:
        """Takes tensors of equal length."""
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
        """The same batch in page-locked memory; called by a loader that does not collate."""
        return Batch({name: tensor.pin_memory() for name, tensor in self.stacked.items()})


def _collate(batch: Sequence[Item], *, collate_fn_map: Any = None) -> dict[str, torch.Tensor]:
    if isinstance(batch, Batch):
        return batch.stacked
    stacked: dict[str, torch.Tensor] = collate(
        [dict(item) for item in batch], collate_fn_map=collate_fn_map
    )
    return stacked


# The registry that torch documents for the collation of custom types.
default_collate_fn_map[Item] = _collate
