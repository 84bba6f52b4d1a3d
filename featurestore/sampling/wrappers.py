"""Looks through torch's wrappers of datasets: ``Subset``, ``random_split``, ``ConcatDataset``.

These wrappers only pass on items. The functions here find the epoch, the samples and the chunks of
the wrapped datasets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset, default_collate

from featurestore.errors import ConfigError
from featurestore.sampling.ordering import Integers


def epoch_holders(dataset: Any) -> list[Any]:
    """The datasets whose ``set_epoch`` affects the items of ``dataset``, each once.

    A wrapper with a ``set_epoch`` is responsible for the datasets that it wraps. Other wrappers are
    searched through torch's names for wrapped datasets, ``dataset`` and ``datasets``.
    """
    holders = {id(holder): holder for holder in _holders(dataset)}
    return list(holders.values())


def _holders(dataset: Any) -> Iterator[Any]:
    if callable(getattr(dataset, "set_epoch", None)):
        yield dataset
        return
    inner = getattr(dataset, "dataset", None)
    if inner is not None:
        yield from _holders(inner)
    several = getattr(dataset, "datasets", None)
    if isinstance(several, Mapping):
        several = several.values()
    for one in several or ():
        yield from _holders(one)


def samples_of(dataset: Any) -> Integers | None:
    """The sample in the store of each item, int64 ``[len]``; None if that is unknown."""
    if isinstance(dataset, Subset):
        inner, chosen = samples_of(dataset.dataset), np.asarray(dataset.indices, np.int64)
        return chosen if inner is None else inner[chosen]
    if isinstance(dataset, ConcatDataset):
        parts = [samples_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    indices = getattr(dataset, "indices", None)
    return None if indices is None else np.asarray(indices, np.int64)


def chunks_of(dataset: Any) -> Integers:
    """The chunk of each item, int64 ``[len]``; chunks of different stores have different numbers.

    Raises:
        ConfigError: no ``FeatureDataset`` is wrapped, so there are no chunks.
    """
    if isinstance(dataset, Subset):
        return chunks_of(dataset.dataset)[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts, first = [], 0
        for part in map(chunks_of, dataset.datasets):
            parts.append(part + first)
            first += int(part.max(initial=-1)) + 1
        return np.concatenate(parts)
    try:
        indices, size = dataset.indices, int(dataset.store.spec.chunk)
    except AttributeError:
        raise ConfigError(
            f"A window of chunks needs a FeatureDataset, found a {type(dataset).__name__}.\n"
            "Use Shuffle(window=None) for other datasets."
        ) from None
    return np.asarray(indices, np.int64) // size


def chunk_size(dataset: Any) -> int | str:
    """Samples per chunk; for several stores, a list of numbers as text."""
    if isinstance(dataset, Subset):
        return chunk_size(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return ", ".join(str(chunk_size(part)) for part in dataset.datasets)
    return int(dataset.store.spec.chunk)


def only_store(dataset: Any) -> Any:
    """The dataset whose chunk numbers :func:`chunks_of` returns, looking through subsets.

    Raises:
        ConfigError: there are several datasets, so that chunk numbers are ambiguous.
    """
    if isinstance(dataset, Subset):
        return only_store(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        raise ConfigError(
            "Chunks of a ConcatDataset are of several stores and cannot be read ahead.\n"
            "Set readahead=False."
        )
    return dataset


def read_batch(dataset: Any, items: Sequence[int]) -> dict[str, torch.Tensor]:
    """Reads several items of a dataset, wrapped or not, as one dictionary of stacked tensors."""
    if callable(getattr(dataset, "batch", None)):
        read: dict[str, torch.Tensor] = dataset.batch(items)
        return read
    if type(dataset) is Subset:
        return read_batch(dataset.dataset, [dataset.indices[item] for item in items])
    several = getattr(dataset, "__getitems__", None)
    listed = several(items) if callable(several) else [dataset[item] for item in items]
    stacked: dict[str, torch.Tensor] = default_collate(listed)
    return stacked
