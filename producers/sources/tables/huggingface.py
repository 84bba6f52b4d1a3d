"""Data sets of the library ``datasets``, saved to disk or of the hub: the kind ``huggingface``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import ConfigError, InputError
from featurestore.wording import one_line
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container, missing_package
from producers.sources.scan import Scan
from producers.sources.tables.arrow import ArrowPlaces
from producers.sources.tables.columns import Known, choose_columns, require_types
from producers.sources.tables.converting import read_file
from producers.sources.tables.rows import Rows, class_names, huggingface_features
from producers.sources.tables.table import ids_of, require_pyarrow, scan_rows

# The files of a data set that ``save_to_disk`` wrote.
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def scan(collection: CollectionConfig) -> Scan:
    """Scans the rows of a data set, split by split.

    Raises:
        ConfigError: a library is missing, or a column or split does not exist or has a wrong type.
        InputError: the data set is missing or damaged, or a row has no input or a wrong id.
    """
    require_pyarrow("A data set of the hub's library")
    path = Path(collection.path)
    saved = path.is_dir() and any((path / name).is_file() for name in (_STATE, _SPLITS))
    splits = _saved_splits(collection, path) if saved else _loaded_splits(collection)
    files = [Container.of(file) for listed in splits.values() for file in listed]
    rows_of = {file.path: _read(Path(file.path)) for file in files}
    tables = [rows_of[file.path] for file in files]
    if not sum(table.num_rows for table in tables):
        raise InputError(f"{collection.path} has no rows.")
    schema = tables[0].schema
    for file, table in zip(files, tables, strict=True):
        if not table.schema.equals(schema):
            raise InputError(f"{file.path} has other columns than the first file, {files[0].path}.")
    features = huggingface_features(schema)
    images = tuple(name for name, feature in features.items() if _is_image(feature))
    known = Known(images=images) if images else Known()
    columns = choose_columns(collection, schema.names, collection.path, known)
    require_types(schema, columns, collection.path)
    rows = Rows(tables, columns.image, columns.texts)
    of = np.repeat(np.arange(len(files)), np.diff(rows.starts))
    places = ArrowPlaces(
        collection=collection,
        files=files,
        rows=rows,
        order=np.arange(len(rows)),
        sources=files,
        source_of=of,
        row_in_source=np.arange(len(rows)) - rows.starts[of],
    )
    named = _split_names(splits, rows_of)
    return scan_rows(
        places,
        ids=ids_of(rows, columns.id),
        labels=columns.labels,
        split=columns.split,
        splits=(lambda: named) if columns.split is None and set(named) != {""} else None,
        label_names=class_names(schema, columns.labels) if columns.labels else None,
    )


def _is_image(feature: Any) -> bool:
    return isinstance(feature, Mapping) and feature.get("_type") == "Image"


def _split_names(splits: Mapping[str, Sequence[Path]], tables: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, listed in splits.items()
        for file in listed
        for _ in range(tables[str(file.absolute())].num_rows)
    ]


def _saved_splits(collection: CollectionConfig, path: Path) -> dict[str, list[Path]]:
    """The Arrow files of each split of a saved data set; a single one has the name ""."""
    if not (path / _SPLITS).is_file():
        if collection.splits:
            raise ConfigError(f"{path} is one saved split: [collection] splits does not apply.")
        return {"": _saved_files(path)}
    names = _json(path / _SPLITS).get("splits", [])
    chosen = _chosen(collection, names)
    return {name: _saved_files(path / name) for name in chosen}


def _saved_files(path: Path) -> list[Path]:
    state = _json(path / _STATE)
    try:
        return [path / file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise _damaged(path / _STATE, "it does not list the data files") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, one_line(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it is no JSON object")
    return value


def _chosen(collection: CollectionConfig, names: Sequence[str]) -> Sequence[str]:
    """The splits to read, in order."""
    missing = [name for name in collection.splits if name not in names]
    if missing:
        raise ConfigError(
            f"{collection.path} has no split {missing[0]!r}; its splits: {', '.join(names)}."
        )
    return collection.splits or names


def _read(path: Path) -> Any:
    import pyarrow as pa

    try:
        return read_file(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, one_line(error)) from error


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is damaged: {problem}.\nSave the data set again with save_to_disk()."
    )


def _loaded_splits(collection: CollectionConfig) -> dict[str, list[Path]]:
    """The Arrow files of each split of a data set of the hub.

    ``datasets.load_dataset`` downloads them into its own cache, or finds them there.

    Raises:
        InputError: the package ``datasets`` is missing, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise missing_package("datasets", "A data set of the hub") from None
    try:
        loaded = datasets.load_dataset(
            collection.path, collection.config, revision=collection.revision
        )
    except Exception as error:
        raise InputError(
            f"The data set {collection.path} cannot be loaded: {one_line(error)}\n"
            "It needs the network once, unless it is in the cache of `datasets`; for gated data "
            "sets log in with `hf auth login`."
        ) from error
    chosen = _chosen(collection, list(loaded))
    return {name: _cached_files(collection, name, loaded[name]) for name in chosen}


def _cached_files(collection: CollectionConfig, name: str, split: Any) -> list[Path]:
    files = [Path(file["filename"]) for file in split.cache_files]
    if not files:
        raise InputError(
            f"The split {name!r} of {collection.path} is in memory only.\n"
            "Save the data set with save_to_disk(), and name that folder."
        )
    return files
