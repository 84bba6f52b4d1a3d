"""The published training code's datamodule, from a store or from materialized files.

It has the interface of ``dataset_1x_aug70.py``: the factories, their keywords, the environment
variables that name folders, ``GWDataModule``, and loaders that yield aligned dictionaries per set
of domains. Unlike the published code, it copies no rows: every domain, the clean ones included, is
a lazy view of mapped rows, so that memory use stays constant even for all 70 views of BLIP-2.

The loaders need Lightning (``pip install "manyviews[lightning]"``); the datasets do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.label_files import read_ids, read_labels
from featurestore.imdb.label_sets import holds_others
from featurestore.imdb.splits import read_split
from featurestore.labels.files import SPLIT_FILE
from featurestore.published.arguments import (
    DATA_VARIABLE,
    LABELS_VARIABLE,
    Features,
    WithoutEffect,
    expanded,
    family_features,
    file_features,
    variable,
)
from featurestore.published.domain_groups import (
    IMAGE,
    IMAGE_CLEAN,
    LABELS,
    TEXT,
    TEXT_CLEAN,
    DomainGroups,
    Groups,
    ViewOptions,
)
from featurestore.published.domains import DomainDataset, DomainRows
from featurestore.published.feature_groups import open_feature_groups
from featurestore.published.feature_rows import open_domains
from featurestore.published.gw_module import GroupLoaders, gw_data_module
from featurestore.reading.npy_folder import stems_of

if TYPE_CHECKING:
    GWDataModule = GroupLoaders

__all__ = [
    "IMAGE",
    "IMAGE_CLEAN",
    "LABELS",
    "TEXT",
    "TEXT_CLEAN",
    "DomainDataset",
    "DomainRows",
    "GWDataModule",
    "make_datamodule",
    "make_datamodule_blip2_aug70",
    "make_datamodule_clip_aug70",
    "make_datasets",
]


def __getattr__(name: str) -> Any:
    if name == "GWDataModule":  # imports Lightning, which datasets do not need
        return gw_data_module()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_datamodule_clip_aug70(**keywords: Any) -> GroupLoaders:
    """Creates a datamodule of CLIP features; see :func:`make_datamodule` for the keywords."""
    return make_datamodule("clip", **keywords)


def make_datamodule_blip2_aug70(**keywords: Any) -> GroupLoaders:
    """Creates a datamodule of BLIP-2 features; see :func:`make_datamodule` for the keywords."""
    return make_datamodule("blip2", **keywords)


def make_datamodule(
    family: Path | str | None = None,
    features: Iterable[str] | None = None,
    *,
    embeddings: Path | str | None = None,
    data_root: Path | str | None = None,
    labels_dir: Path | str | None = None,
    split_json: Path | str | None = None,
    image_latents_path: Path | str | None = None,
    caption_embeddings_path: Path | str | None = None,
    batch_size: int = 2048,
    num_workers: int = 9,
    pin_memory: bool = True,
    include_labels: bool = False,
    normalize: str = "none",
    view_mode: str = "clean",
    view_k: int = 0,
    **without_effect: Any,
) -> GroupLoaders:
    """Creates a datamodule of image and text features, or of any features of a store.

    ``make_datamodule(store, features)`` has the domains of these names, and ``labels`` if there is
    a ``labels_dir``: the rows that ``labels`` wrote, float32 ``[C]``. It has a dataset of each
    domain, each pair of features, each feature with the labels, all features, and these with the
    labels; each leaves out samples that lack one of its domains, and those with a placeholder.

    Args:
        family: ``clip`` or ``blip2``; with ``features``, a store or a folder that ``materialize``
            wrote; None if paths name the features, as in :func:`make_datasets`.
        features: names of features of any collection; None for the published domains.
        embeddings: a store, or a folder that ``materialize`` wrote. The z-score of a store uses all
            rows, as that of the materialized files does by default. The default is the folder that
            the environment variable ``OTHER_BACKBONES_DIR_IMDB1_AUG70`` names.
        data_root: the folder that holds ``split.json``; by default the value of ``MMIMDB1_DIR``.
        labels_dir: a folder that ``labels`` wrote, whose list of stems must equal that of the
            features; only ``include_labels`` needs it. The default is then the value of
            ``IMDB1_LABELS_DIR_23``. With ``features`` it adds the domain ``labels``.
        split_json: the split file; by default ``split.json`` in ``data_root``, with ``features``
            else that in ``labels_dir``.
        image_latents_path: see :func:`make_datasets`; without a family only.
        caption_embeddings_path: as ``image_latents_path``.
        batch_size: rows per batch; the last one of an epoch may be smaller.
        num_workers: of each loader; 0 is faster here, as rows come from mapped memory.
        pin_memory: whether batches are in page-locked memory if there is a GPU.
        include_labels: whether to add the domain ``labels``, float32 ``[23]``; with ``features``,
            requires ``labels_dir``.
        normalize: ``none`` or ``train_split``. The latter subtracts the mean of the training rows
            from each domain but the labels, and divides by their sample standard deviation (as
            ``torch.std``; 1e-6 where it is 0).
        view_mode: ``clean``, ``view_k``, ``mean`` (one row a sample) or ``all`` (V rows a sample,
            sample-major).
        view_k: the number of the view for ``view_mode="view_k"``.
        without_effect: further keywords of the published factories, see
            :class:`featurestore.published.arguments.WithoutEffect`.

    Returns:
        A ``GWDataModule``.

    Raises:
        TypeError: the published factories do not have the keyword either.
        ConfigError: a value is invalid or has an effect that is not implemented, or neither a
            keyword nor its environment variable names a folder.
        InputError: embeddings, labels and split do not belong together, or one is missing.
    """
    unused = WithoutEffect.of(without_effect)
    paths = (image_latents_path, caption_embeddings_path)
    options = ViewOptions(include_labels, normalize, view_mode, view_k)
    loaders = (batch_size, num_workers, pin_memory)
    if features is not None:
        if family is None or embeddings is not None or paths != (None, None):
            raise ConfigError(
                "With features, name the store first: make_datamodule(store, features)."
            )
        if include_labels and labels_dir is None:
            raise ConfigError("include_labels needs labels_dir, a folder that `labels` wrote.")
        train, val, test = open_feature_groups(
            expanded(family),
            features,
            None if labels_dir is None else expanded(labels_dir),
            _split_file(split_json, data_root),
            options,
            unused,
        )
        return gw_data_module()(val, train, test, *loaders)
    if paths != (None, None) and (family is not None or embeddings is not None):
        raise ConfigError("Features are named by family and embeddings, or by two paths; not both.")
    if family is None and embeddings is None:
        chosen = file_features(*paths)
    else:
        chosen = family_features(family or "clip", embeddings)
    from_variables = embeddings is None
    labels_folder = _labels_folder(labels_dir, include_labels, from_variables=from_variables)
    split_file = _split_file(split_json, data_root) or variable(DATA_VARIABLE) / SPLIT_FILE
    train, val, test = _open_groups(chosen, split_file, labels_folder, options, unused)
    return gw_data_module()(val, train, test, *loaders)


def _split_file(split_json: Path | str | None, data_root: Path | str | None) -> Path | None:
    if split_json is not None:
        return expanded(split_json)
    return None if data_root is None else expanded(data_root) / SPLIT_FILE


def make_datasets(
    image_latents_path: Path | str | None = None,
    caption_embeddings_path: Path | str | None = None,
    *,
    include_labels: bool = False,
    normalize: str = "none",
    view_mode: str = "clean",
    view_k: int = 0,
    **without_effect: Any,
) -> tuple[Groups, Groups, Groups]:
    """Creates the datasets of the published code, without a datamodule.

    Args:
        image_latents_path: ``FOLDER/mm_imdb1_globals_aug70_clip_image.npy``, where FOLDER holds
            materialized files, or is a store that has the feature of this name. The default is the
            value of ``MMIMDB_IMAGE_LATENTS``, else the file of CLIP in the folder
            ``OTHER_BACKBONES_DIR_IMDB1_AUG70``.
        caption_embeddings_path: the same for texts, with ``MMIMDB_TEXT_EMBEDS``.
        include_labels: see :func:`make_datamodule`, also for the keywords below.
        normalize: ``none`` or ``train_split``.
        view_mode: ``clean``, ``view_k``, ``mean`` or ``all``.
        view_k: the number of the view for ``view_mode="view_k"``.
        without_effect: see :func:`make_datamodule`.

    Returns:
        The training, validation and test datasets, each a dictionary from a frozenset of domain
        names to its dataset.

    Raises:
        TypeError: the published factories do not have the keyword either.
        ConfigError: as :func:`make_datamodule`.
        InputError: as :func:`make_datamodule`.
    """
    unused = WithoutEffect.of(without_effect)
    return _open_groups(
        file_features(image_latents_path, caption_embeddings_path),
        variable(DATA_VARIABLE) / SPLIT_FILE,
        _labels_folder(None, include_labels, from_variables=True),
        ViewOptions(include_labels, normalize, view_mode, view_k),
        unused,
    )


def _labels_folder(
    given: Path | str | None, include_labels: bool, *, from_variables: bool
) -> Path | None:
    if given is not None:
        return expanded(given)
    if include_labels:
        needed = ": include_labels needs labels_dir, a folder that `labels` wrote"
        return variable(LABELS_VARIABLE, needed)
    # Without labels, the folder's list of stems is used if it exists, but is not required.
    if from_variables and os.environ.get(LABELS_VARIABLE, "").strip():
        folder = variable(LABELS_VARIABLE)
        return folder if folder.is_dir() else None
    return None


def _open_groups(
    features: Features,
    split_file: Path,
    labels_folder: Path | None,
    options: ViewOptions,
    unused: WithoutEffect,
) -> tuple[Groups, Groups, Groups]:
    if labels_folder is None:
        stems = stems_of(features.folder, features.prefix)
    else:
        _require_published(labels_folder)
        stems = read_ids(labels_folder)
    rows = open_domains(features, stems, options.sparse)
    unused.check(rows[IMAGE])
    labels = None
    if options.include_labels and labels_folder is not None:
        labels = read_labels(labels_folder, stems)
    return DomainGroups(rows, labels, options).of(read_split(split_file, stems))


def _require_published(labels_folder: Path) -> None:
    """Refuses labels of another collection, whose classes the published code does not know."""
    if holds_others(labels_folder):
        raise InputError(
            f"{labels_folder} holds the labels of another collection than MM-IMDb, and the paper's "
            "factories read labels_all_23.npy only.\nFor these, use manyviews.make_datamodule("
            "store, features, labels_dir=, split_json=), which has the other keywords as well."
        )
