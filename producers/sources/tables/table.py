"""Tables, CSV, TSV, JSONL or Parquet: the kind ``table``; and scans of Arrow rows of any kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import ConfigError, InputError
from featurestore.records import Sample
from featurestore.samples import SampleList
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import (
    Container,
    Integers,
    find_files,
    missing_package,
)
from producers.sources.ids import require_ids
from producers.sources.recognize import TABLE_SUFFIXES
from producers.sources.scan import Scan, modalities_of
from producers.sources.tables.arrow import ArrowPlaces
from producers.sources.tables.rows import URL, Rows, label_values

_DIGITS = 8


def require_pyarrow(what: str) -> None:
    """Checks that pyarrow is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise missing_package("pyarrow", what) from None


def scan(collection: CollectionConfig) -> Scan:
    """Scans the rows of one or several tables.

    Returns:
        The samples, in the order of the tables, or sorted by id.

    Raises:
        ConfigError: a column is missing or has a wrong type, or pyarrow is not installed.
        InputError: a table is missing or damaged, or a row has no input, or a wrong id.
    """
    require_pyarrow("A table")
    from producers.sources.tables.converting import convert

    sources = [Container.of(path) for path in find_files(collection.path)]
    for source in sources:
        if not source.path.lower().endswith(TABLE_SUFFIXES):
            raise InputError(f"{source.path} is no table: expected {', '.join(TABLE_SUFFIXES)}.")
    if len({Path(source.path).suffix.lower() for source in sources}) > 1:
        raise InputError(f"{collection.path} means tables of several formats: name one format.")
    converted = convert(collection, sources)
    places = cached_places(collection, sources, converted)
    return scan_rows(
        places,
        ids=ids_of(places.rows, "id" if "id" in converted.names else None),
        labels=converted.names.get("labels") and "labels",
        split=converted.names.get("split") and "split",
        form=converted.labels,
    )


def cached_places(
    collection: CollectionConfig, sources: Sequence[Container], converted: Any
) -> ArrowPlaces:
    """The places of all rows of tables in their cached form, in order."""
    table = converted.table
    of: Integers = table.column("file").to_numpy().astype(np.int64)
    texts = [name for name in converted.names if name.startswith("text")]
    rows = Rows([table], "image" if "image" in converted.names else None, texts)
    return ArrowPlaces(
        collection=collection,
        files=[Container.of(converted.path)],
        rows=rows,
        order=np.arange(len(rows)),
        sources=sources,
        source_of=of,
        row_in_source=np.arange(len(of)) - np.searchsorted(of, of),
        cache=converted.path,
    )


def ids_of(rows: Rows, column: str | None) -> list[str]:
    """The ids in a column; without one, the numbers of the rows, with at least eight digits."""
    if column is None:
        return [f"{row:0{_DIGITS}d}" for row in range(len(rows))]
    return ["" if value is None else str(value) for value in rows.values(column)]


def scan_rows(
    places: ArrowPlaces,
    *,
    ids: Sequence[str],
    labels: str | None,
    split: str | None,
    form: str = "typed",
    splits: Callable[[], Sequence[str | None]] | None = None,
    label_names: Sequence[str] | None = None,
) -> Scan:
    """Scans rows of Arrow files.

    Args:
        places: where the rows are, in the order of the samples or, with ``order = "id"``, to be
            sorted.
        ids: the id of every row.
        labels: name of the column of labels, or None.
        split: name of the column of splits, or None.
        form: how labels are written, see :func:`label_values`.
        splits: function that returns the split of every row, if no column names it.
        label_names: names of the classes that integers number, or None.

    Raises:
        ConfigError: an image is a URL.
        InputError: a row has no input or a wrong id, or no image can be found.
    """
    require_ids(ids, places.row_name)
    modalities = _require_inputs(places)
    if places.collection.order == "id":
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        places = replace(places, order=order)
    rows, order = places.rows, places.order.tolist()

    def labels_of() -> list[Any]:
        values = label_values(rows.values(str(labels)), form, label_names)
        return [values[row] for row in order]

    def splits_of() -> list[str | None]:
        names = list(rows.values(split)) if split is not None else splits() if splits else []
        return [names[row] or None for row in order]

    return Scan(
        collection=places.collection,
        samples=SampleList.of(Sample(i, ids[row]) for i, row in enumerate(order)),
        places=places,
        modalities=modalities,
        labels=labels_of if labels is not None else None,
        splits=splits_of if split is not None or splits is not None else None,
        label_names=None if label_names is None else tuple(label_names),
    )


def _require_inputs(places: ArrowPlaces) -> Any:
    """The modalities of the rows; refuses URLs, rows without any input, and missing images."""
    rows, path_of = places.rows, places.collection.path
    images, texts = rows.image_bytes() > 0, rows.text_bytes() > 0
    is_url = re.compile(URL).match
    for row, path in enumerate(rows.paths() or ()):
        if path is None:
            continue
        images[row] = True
        if "\0" in path:
            raise InputError(
                f"The path in {places.row_name(row)} of {path_of} has a NUL "
                f"character: {path[:80]!r}.\nExpected the path of an image."
            )
        if is_url(path):
            raise ConfigError(
                f"The image in {places.row_name(row)} of {path_of} is a URL: "
                f"{path[:80]!r}.\nimg2dataset downloads such tables: read the files that it writes."
            )
    empty = np.flatnonzero(~(images | texts))
    if len(empty):
        more = f", and {len(empty) - 1:,} more rows" if len(empty) > 1 else ""
        raise InputError(
            f"{path_of}: {places.row_name(int(empty[0]))} has neither an image "
            f"nor a text{more}.\nRemove such rows, or name other columns in [collection]."
        )
    if places.no_image_found():
        first = next(path for path in rows.paths() or () if path)
        raise InputError(
            f"The images of {places.collection.path} are not there: none of the first paths leads "
            f"to a file, such as {first!r}.\nPaths are relative to the folder of the table."
        )
    return modalities_of(images=bool(images.any()), texts=bool(texts.any()))
