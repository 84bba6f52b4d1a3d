"""The class of the datamodule that the published training code uses (GW_Attention_IMDB).

It has one data set for each set of domains, that is of features and labels, and combines their
loaders.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from featurestore.errors import ConfigError
from featurestore.published.lightning import combined_loader, lightning_module

Domains = frozenset[str]
Datasets = Mapping[Domains, Dataset[dict[str, torch.Tensor]]]


class GroupLoaders:
    """Train, validation and test datasets per set of domains, and their combined loaders.

    ``GWDataModule`` is this class and, where Lightning is installed, a ``LightningDataModule``.

    Attributes:
        train_datasets: training datasets by frozenset of domain names.
        val_datasets: validation datasets, likewise.
        test_datasets: test datasets, likewise; may be empty.
        batch_size: rows per batch; the last one of an epoch may be smaller.
        num_workers: number of worker processes of each loader.
        pin_memory: whether batches are in page-locked memory if there is a GPU.
    """

    def __init__(
        self,
        val_datasets: Datasets,
        train_datasets: Datasets,
        test_datasets: Datasets | None,
        batch_size: int,
        num_workers: int = 9,
        pin_memory: bool = True,
    ) -> None:
        """Takes the datasets; see the attributes.

        Raises:
            ConfigError: the batch size is less than 1.
        """
        super().__init__()  # Lightning's constructor, if this is a LightningDataModule
        if batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, found {batch_size}.")
        self.val_datasets = val_datasets
        self.train_datasets = train_datasets
        self.test_datasets = test_datasets or {}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def setup_dataloaders(
        self, datasets: Datasets, *, shuffle: bool
    ) -> dict[Domains, DataLoader[Any]]:
        """One loader for each dataset, in the same order."""
        return {
            domains: DataLoader(
                dataset,
                batch_size=self.batch_size,
                shuffle=shuffle,
                num_workers=self.num_workers,
                # Without a GPU, pinning has no use, and torch warns about it.
                pin_memory=self.pin_memory and torch.cuda.is_available(),
            )
            for domains, dataset in datasets.items()
        }

    def train_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the training datasets, shuffled."""
        return self._combined(self.train_datasets, shuffle=True)

    def val_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the validation datasets, in order."""
        return self._combined(self.val_datasets, shuffle=False)

    def test_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the test datasets, in order."""
        return self._combined(self.test_datasets, shuffle=False)

    def _combined(self, datasets: Datasets, *, shuffle: bool) -> Any:
        loaders = self.setup_dataloaders(datasets, shuffle=shuffle)
        return combined_loader()(loaders, mode="min_size")

    def get_samples(self, split: str, amount: int) -> dict[Domains, dict[str, torch.Tensor]]:
        """The first rows of every dataset of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            amount: the number of rows; a smaller split gives all its rows, as in the published
                code.

        Returns:
            By frozenset of domain names, a dictionary from name to float32 ``[amount, D]``.

        Raises:
            ConfigError: the split is unknown, or ``amount`` is less than 1.
        """
        named = {"train": self.train_datasets, "val": self.val_datasets, "test": self.test_datasets}
        if split not in named:
            raise ConfigError(f"split is train, val or test, found {split!r}.")
        if amount < 1:
            raise ConfigError(f"amount is at least 1, found {amount}.")
        return {domains: _first(dataset, amount) for domains, dataset in named[split].items()}


def _first(dataset: Any, amount: int) -> dict[str, torch.Tensor]:
    items = list(range(min(amount, len(dataset))))
    read = getattr(dataset, "__getitems__", None)
    rows: dict[str, torch.Tensor] = default_collate(
        read(items) if read else [dataset[item] for item in items]
    )
    return rows


@functools.cache
def gw_data_module() -> type[GroupLoaders]:
    """The class ``GWDataModule``; the first call imports Lightning, which takes seconds."""
    lightning = lightning_module()
    bases = (GroupLoaders,) if lightning is None else (GroupLoaders, lightning.LightningDataModule)
    place = {"__module__": "featurestore.datamodule", "__doc__": GroupLoaders.__doc__}
    return type("GWDataModule", bases, place)
