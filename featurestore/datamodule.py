"""The published training code's datamodule, from a store or from materialized files.

It keeps the interface of ``dataset_1x_aug70.py``: the two factories, their keywords, the variables
that name folders, and loaders that give aligned dictionaries per set of domains. What it does not
keep are the copies: every domain is a lazy view of mapped rows, the clean mirrors included, so that
memory stays flat even for all 70 views of BLIP-2.

Loaders need Lightning (``pip install "manyviews[lightning]"``); datasets do not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from featurestore.domains import DomainDataset, DomainRows, as_it_is
from featurestore.errors import ConfigError, InputError
from featurestore.label_files import read_ids, read_labels
from featurestore.lightning_door import combined_loader, lightning_module
from featurestore.materialize import PREFIX
from featurestore.module_options import ModuleOptions
from featurestore.moments import Scale, sample_scale_of
from featurestore.npy_folder import NpyFolder
from featurestore.records import stems_sha256
from featurestore.rows import FeatureRows, npy_rows, store_rows
from featurestore.scaling import scale_for
from featurestore.sources import resolve_advice
from featurestore.splits import Split, read_split
from featurestore.stem_lists import stems_of
from featurestore.store import FeatureStore, is_store
from featurestore.wording import amount

Domains = frozenset[str]

IMAGE, TEXT = "image_latents", "caption_embeddings"
IMAGE_CLEAN, TEXT_CLEAN = "image_latents_clean", "caption_embeddings_clean"
LABELS = "labels"

_PAIRED = ((IMAGE, TEXT), (IMAGE_CLEAN,), (TEXT_CLEAN,), (IMAGE, IMAGE_CLEAN), (TEXT, TEXT_CLEAN))
_ALL = (IMAGE, TEXT, IMAGE_CLEAN, TEXT_CLEAN)
_TRAIN_ONLY = ((IMAGE,), (TEXT,))
_LABELLED = ((LABELS,), (IMAGE, TEXT, LABELS), (*_ALL, LABELS))
_FEATURES = {
    "clip": {IMAGE: "clip_image", TEXT: "clip_text"},
    "blip2": {IMAGE: "blip2_image", TEXT: "blip2_text"},
}
_UNSET = "The environment variable {} is not set: it names a folder."


class FeatureDataModule:
    """Train, validation and test datasets per set of domains, and their combined loaders.

    Attributes:
        train_datasets: per frozenset of domain names its dataset.
        val_datasets: the same without the single augmented domains.
        test_datasets: like ``val_datasets``.
    """

    def __init__(
        self,
        rows: Mapping[str, FeatureRows],
        labels: npt.NDArray[np.float32] | None,
        split: Split,
        options: ModuleOptions,
    ) -> None:
        """Lines the domains of each split up; see :func:`make_datamodule`."""
        super().__init__()  # Lightning's, where this is one of its datamodules
        self._options = options
        options.check(rows[IMAGE].views)
        scales = self._scales(rows, split)
        self.train_datasets = self._datasets(rows, labels, split.train, scales, train=True)
        self.val_datasets = self._datasets(rows, labels, split.val, scales, train=False)
        self.test_datasets = self._datasets(rows, labels, split.test, scales, train=False)

    def _scales(self, rows: Mapping[str, FeatureRows], split: Split) -> dict[str, Scale]:
        """One scale per domain, from the training rows alone; labels are never scaled."""
        if self._options.normalize == "none":
            return {}
        train = self._domains(rows, split.train, {})
        if min(map(len, train.values())) < 2:
            problem = "normalize='train_split' takes a deviation, so at least two training rows;"
            raise InputError(f"{problem} the training split has {len(split.train)}.")
        return {name: sample_scale_of(domain.moments()) for name, domain in train.items()}

    def _domains(
        self,
        rows: Mapping[str, FeatureRows],
        samples: npt.NDArray[np.int64],
        scales: Mapping[str, Scale],
    ) -> dict[str, DomainRows]:
        mode = self._options.mode
        each = rows[IMAGE].views if mode == "all" else 1
        found = {}
        for name, clean in ((IMAGE, IMAGE_CLEAN), (TEXT, TEXT_CLEAN)):
            found[name] = DomainRows(rows[name], samples, mode, scales.get(name))
            found[clean] = DomainRows(rows[name], samples, 0, scales.get(clean), each)
        return found

    def _datasets(
        self,
        rows: Mapping[str, FeatureRows],
        labels: npt.NDArray[np.float32] | None,
        samples: npt.NDArray[np.int64],
        scales: Mapping[str, Scale],
        *,
        train: bool,
    ) -> dict[Domains, DomainDataset]:
        domains = self._domains(rows, samples, scales)
        keys = [*(_TRAIN_ONLY if train else ()), *_PAIRED, _ALL]
        if labels is not None:
            each = len(domains[IMAGE]) // max(1, len(samples))
            domains[LABELS] = DomainRows(labels, samples, 0, repeats=each)
            keys += _LABELLED
        return {frozenset(k): DomainDataset({n: domains[n] for n in k}) for k in keys}

    def get_samples(self, split: str, amount: int) -> dict[Domains, dict[str, torch.Tensor]]:
        """The first ``amount`` rows of every dataset of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            amount: rows, at most the split's.

        Returns:
            Per frozenset of names, per name float32 ``[amount, D]``.

        Raises:
            ConfigError: no such split, or it has fewer rows.
        """
        named = {"train": self.train_datasets, "val": self.val_datasets, "test": self.test_datasets}
        if split not in named:
            raise ConfigError(f"split is train, val or test, found {split!r}.")
        rows = len(named[split][frozenset(_ALL)])
        if not 0 < amount <= rows:
            raise ConfigError(f"amount is 1 to {rows}, the rows of {split}, found {amount}.")
        wanted = list(range(amount))
        return {key: dataset.__getitems__(wanted) for key, dataset in named[split].items()}

    def train_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the training datasets, shuffled."""
        return self._loader(self.train_datasets, shuffle=True)

    def val_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the validation datasets, in order."""
        return self._loader(self.val_datasets, shuffle=False)

    def test_dataloader(self) -> Any:
        """A ``CombinedLoader`` over the test datasets, in order."""
        return self._loader(self.test_datasets, shuffle=False)

    def _loader(self, datasets: Mapping[Domains, DomainDataset], *, shuffle: bool) -> Any:
        options = self._options
        loaders: dict[Domains, DataLoader[Any]] = {
            key: DataLoader(
                dataset,
                batch_size=options.batch_size,
                shuffle=shuffle,
                num_workers=options.num_workers,
                # Without a GPU there is nothing to pin for, and torch warns of it.
                pin_memory=options.pin_memory and torch.cuda.is_available(),
                collate_fn=as_it_is,
            )
            for key, dataset in datasets.items()
        }
        return combined_loader()(loaders, mode="min_size")


def make_datamodule_clip_aug70(**keywords: Any) -> FeatureDataModule:
    """The published factory for CLIP; see :func:`make_datamodule` for the keywords."""
    return _from_environment("clip", **keywords)


def make_datamodule_blip2_aug70(**keywords: Any) -> FeatureDataModule:
    """The published factory for BLIP-2; see :func:`make_datamodule` for the keywords."""
    return _from_environment("blip2", **keywords)


def _from_environment(family: str, **keywords: Any) -> FeatureDataModule:
    """Takes the three folders from the variables that the published code reads."""
    labels_dir = os.environ.get("IMDB1_LABELS_DIR_23", "").strip()
    if not keywords.get("include_labels"):
        # Its list of stems is used where it is there, but nothing was asked of it.
        labels_dir = labels_dir if Path(labels_dir or ".").is_dir() else ""
    elif not labels_dir:
        raise ConfigError(_UNSET.format("IMDB1_LABELS_DIR_23"))
    return make_datamodule(
        family,
        embeddings=_variable("OTHER_BACKBONES_DIR_IMDB1_AUG70"),
        data_root=_variable("MMIMDB1_DIR"),
        labels_dir=labels_dir or None,
        **keywords,
    )


def _variable(name: str) -> Path:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(_UNSET.format(name))
    return Path(value)


def make_datamodule(
    family: str,
    *,
    embeddings: Path | str,
    data_root: Path | str,
    labels_dir: Path | str | None = None,
    batch_size: int = 2048,
    include_labels: bool = False,
    num_workers: int = 9,
    pin_memory: bool = True,
    normalize: str = "none",
    view_mode: str = "clean",
    view_k: int = 0,
) -> FeatureDataModule:
    """Makes a datamodule over one family's image and text features.

    Args:
        family: ``clip`` or ``blip2``.
        embeddings: a store, or a folder that ``materialize`` wrote. A store is z-scored by all
            rows, as the materialized files are by default.
        data_root: the folder that holds ``split.json``.
        labels_dir: a folder that ``labels`` wrote, whose list of stems must be that of the rows;
            needed for ``include_labels`` alone.
        batch_size: rows per batch; the last one of an epoch may be smaller.
        include_labels: adds the domain ``labels``, float32 ``[23]``.
        num_workers: of each loader; 0 is faster here, as rows come from mapped memory.
        pin_memory: page-locked batches, where there is a GPU.
        normalize: ``train_split`` scales each domain but the labels by its training rows: less
            their mean, divided by their sample deviation (as ``torch.std``; 1e-6 where it is 0).
        view_mode: ``clean``, ``view_k``, ``mean`` (one row a sample) or ``all`` (V rows a sample,
            sample-major).
        view_k: the view of ``view_k``.

    Raises:
        ConfigError: a keyword means nothing.
        InputError: embeddings, labels and split do not belong together, or one is missing.
    """
    if family not in _FEATURES:
        raise ConfigError(f"family is one of {', '.join(_FEATURES)}, found {family!r}.")
    if include_labels and labels_dir is None:
        raise ConfigError("include_labels needs labels_dir, a folder that `labels` wrote.")
    embeddings = Path(embeddings)
    options = ModuleOptions(
        batch_size, include_labels, num_workers, pin_memory, normalize, view_mode, view_k
    )
    stems = stems_of(embeddings, PREFIX) if labels_dir is None else read_ids(Path(labels_dir))
    open_rows = _store_domains if is_store(embeddings) else _npy_domains
    rows = open_rows(embeddings, family, stems, sparse=view_mode in ("clean", "view_k"))
    labels = None
    if include_labels and labels_dir is not None:
        labels = read_labels(Path(labels_dir), stems)
    split = read_split(Path(data_root) / "split.json", stems)
    made: FeatureDataModule = _module_class()(rows, labels, split, options)
    return made


def _store_domains(
    path: Path, family: str, stems: list[str], *, sparse: bool
) -> dict[str, FeatureRows]:
    store = FeatureStore(path)
    if store.stems != stems:
        raise InputError(f"{path} and the labels are of other samples, or in another order.")
    features = _FEATURES[family]
    advice = resolve_advice(store, list(features.values()), "auto", None, sparse=sparse)
    return {
        name: store_rows(store, feature, scale_for(store, feature, "all", None), advice=advice)
        for name, feature in features.items()
    }


def _npy_domains(
    folder: Path, family: str, stems: list[str], *, sparse: bool
) -> dict[str, FeatureRows]:
    source, features = NpyFolder(folder, PREFIX), _FEATURES[family]
    if source.spec.samples != len(stems):
        raise InputError(
            f"{folder} is of {amount(source.spec.samples, 'sample')}, the labels of {len(stems)}."
        )
    if source.stems_sha256 not in (None, stems_sha256(stems)):
        raise InputError(f"{folder} and the labels are of other samples, or in another order.")
    advice = resolve_advice(source, list(features.values()), "auto", None, sparse=sparse)
    return {name: npy_rows(folder, PREFIX, f, advice=advice) for name, f in features.items()}


@functools.cache
def _module_class() -> type[FeatureDataModule]:
    """The datamodule's class: also a ``LightningDataModule`` where Lightning is installed."""
    lightning = lightning_module()
    if lightning is None:
        return FeatureDataModule
    return type("FeatureDataModule", (FeatureDataModule, lightning.LightningDataModule), {})
