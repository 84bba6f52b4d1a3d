"""Opens the rows of the published domains, of a store or of materialized files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featurestore.errors import InputError
from featurestore.published.arguments import Features
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.rows import FeatureRows, npy_rows, store_rows
from featurestore.reading.scaling import scale_for
from featurestore.reading.sources import FeatureSource, resolve_advice
from featurestore.records import stems_sha256
from featurestore.storage.store import FeatureStore, is_store
from featurestore.wording import amount


def _require_features(source: FeatureSource, names: Mapping[str, str]) -> None:
    missing = sorted(set(names.values()) - set(source.spec.dims))
    if missing:
        raise InputError(
            f"{source.path} holds {', '.join(source.spec.dims)}, and not {', '.join(missing)}."
        )


def _other_samples(folder: Path) -> InputError:
    return InputError(
        f"The samples of {folder} and of the labels differ, or are in another order.\n"
        "Run `labels` again with the data folder that the features were built from."
    )


def open_domains(features: Features, stems: list[str], sparse: bool) -> dict[str, FeatureRows]:
    """The rows of the image and the text domain, of a store or of materialized files.

    Args:
        features: the features' folder and names.
        stems: the expected stem of each sample, in order.
        sparse: whether only one view of each sample is read.

    Raises:
        InputError: the samples of the features and ``stems`` differ, or a feature is missing.
    """
    opened = _store_domains if is_store(features.folder) else _npy_domains
    return opened(features, stems, sparse)


def _store_domains(features: Features, stems: list[str], sparse: bool) -> dict[str, FeatureRows]:
    store, names = FeatureStore(features.folder), features.names
    if store.stems != stems:
        raise _other_samples(features.folder)
    _require_features(store, names)
    advice = resolve_advice(store, list(names.values()), "auto", None, sparse=sparse)
    return {
        domain: store_rows(store, name, scale_for(store, name, "all", None), advice=advice)
        for domain, name in names.items()
    }


def _npy_domains(features: Features, stems: list[str], sparse: bool) -> dict[str, FeatureRows]:
    folder, prefix, names = features.folder, features.prefix, features.names
    source = NpyFolder(folder, prefix)
    if source.spec.samples != len(stems):
        raise InputError(
            f"{folder} is of {amount(source.spec.samples, 'sample')}, the labels of {len(stems)}."
        )
    if source.stems_sha256 not in (None, stems_sha256(stems)):
        raise _other_samples(folder)
    _require_features(source, names)
    advice = resolve_advice(source, list(names.values()), "auto", None, sparse=sparse)
    return {domain: npy_rows(folder, prefix, name, advice=advice) for domain, name in names.items()}
