"""Facts about the rows of Arrow tables, computed without reading images: ids, sizes, labels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from producers.sources.container_files import Integers
from producers.sources.tables.columns import is_list

if TYPE_CHECKING:
    import pyarrow as pa

URL = r"^[A-Za-z][A-Za-z0-9+.-]*://"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Rows:
    """Tables, one below the other.

    Attributes:
        tables: the tables, which may be memory-mapped.
        image: name of the column of images, or None.
        texts: names of the columns of texts.
        starts: number of the first row of each table, and the number of all rows.
    """

    tables: Sequence[pa.Table]
    image: str | None
    texts: Sequence[str]
    starts: Integers = field(init=False)

    def __post_init__(self) -> None:
        """Counts the rows."""
        counts = [0, *(table.num_rows for table in self.tables)]
        object.__setattr__(self, "starts", np.cumsum(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def values(self, column: str) -> Iterator[Any]:
        """The values of a column, row by row."""
        for table in self.tables:
            for chunk in table.column(column).chunks:
                yield from chunk.to_pylist()

    def image_bytes(self) -> Integers:
        """Size of the encoded image of each row in bytes, int64 ``[rows]``; 0 without an image."""
        return self._joined([self.image] if self.image else [], _embedded_bytes)

    def paths(self) -> list[str | None] | None:
        """Path of each row's image, or None if the table holds its bytes; None without any path."""
        if self.image is None:
            return None
        paths: list[str | None] = []
        for table in self.tables:
            for chunk in table.column(self.image).chunks:
                paths += _paths(chunk)
        return paths if any(paths) else None

    def text_bytes(self) -> Integers:
        """Total size of the texts of each row in bytes, int64 ``[rows]``; 0 without a text."""
        return self._joined(self.texts, byte_lengths)

    def _joined(self, columns: Sequence[str], lengths: Any) -> Integers:
        total = np.zeros(len(self), np.int64)
        for column in columns:
            start = 0
            for table in self.tables:
                for chunk in table.column(column).chunks:
                    total[start : start + len(chunk)] += lengths(chunk)
                    start += len(chunk)
        return total


def byte_lengths(array: pa.Array) -> Integers:
    """The number of bytes of every string or bytes, or of all those of a list: int64 ``[n]``."""
    import pyarrow.compute as pc
    import pyarrow.types as t

    if t.is_null(array.type):
        return np.zeros(len(array), np.int64)
    if t.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_list(array.type):
        inner = byte_lengths(pc.list_flatten(array))
        parents = pc.list_parent_indices(array).to_numpy(zero_copy_only=False)
        return np.bincount(parents, inner, len(array)).astype(np.int64)
    lengths: Integers = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def image_parts(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """The bytes and the paths of a column of structs; any other column, and nothing."""
    import pyarrow.compute as pc
    import pyarrow.types as t

    if not t.is_struct(column.type):
        return column, None
    names = [field.name for field in column.type]
    data, paths = (pc.struct_field(column, n) if n in names else None for n in ("bytes", "path"))
    return data, paths


def _embedded_bytes(array: pa.Array) -> Integers:
    import pyarrow.compute as pc
    import pyarrow.types as t

    if t.is_struct(array.type):
        names = [f.name for f in array.type]
        if "bytes" not in names:
            return np.zeros(len(array), np.int64)
        array = pc.struct_field(array, "bytes")
    elif not (t.is_binary(array.type) or t.is_large_binary(array.type)):
        return np.zeros(len(array), np.int64)
    return byte_lengths(array)


def _paths(array: pa.Array) -> list[str | None]:
    """The path of every image that is not in the array."""
    import pyarrow.compute as pc
    import pyarrow.types as t

    nothing: list[str | None] = [None] * len(array)
    if t.is_struct(array.type):
        if "path" not in [f.name for f in array.type]:
            return nothing
        embedded = _embedded_bytes(array) > 0
        if embedded.all():
            return nothing
        listed = pc.struct_field(array, "path").to_pylist()
        pairs = zip(listed, embedded.tolist(), strict=True)
        return [None if inside else path or None for path, inside in pairs]
    if t.is_binary(array.type) or t.is_large_binary(array.type):
        return nothing
    return [path or None for path in array.to_pylist()]


def label_values(
    values: Iterator[Any], form: str, names: Sequence[str] | None
) -> list[list[str] | str | int | float | None]:
    """The labels of every row: list of strings, string, int or float; None for no label.

    Args:
        values: the values of the column.
        form: ``typed``; ``json``, each value is JSON; or ``text``, the cells of a CSV file.
        names: names of the classes that integers number, or None.
    """
    if form == "text":
        return _typed([value or None for value in values])
    parsed = (json.loads(v) if v and form == "json" else v for v in values)
    return [_label(value, names) for value in parsed]


def _label(value: Any, names: Sequence[str] | None) -> list[str] | str | int | float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list):
        return [str(_label(v, names)) for v in value if v is not None and v != ""]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and names is not None:
        return names[value] if 0 <= value < len(names) else None
    label: str | int | float = value
    return label


def _typed(cells: Sequence[str | None]) -> list[list[str] | str | int | float | None]:
    """The labels that the cells of a file without types mean.

    All cells are integers, or all are decimal numbers, or all are JSON lists of strings, or they
    are strings; ``007`` is a string.
    """
    given = [cell for cell in cells if cell is not None]
    if all(_INTEGER.fullmatch(cell) for cell in given):
        return [None if cell is None else int(cell) for cell in cells]
    if all(_DECIMAL.fullmatch(cell) for cell in given) and not any(
        cell.lstrip("+-").startswith("0") and cell.lstrip("+-").isdigit() and len(cell) > 1
        for cell in given
    ):
        return [None if cell is None else float(cell) for cell in cells]
    lists = [_json_list(cell) for cell in given]
    if None not in lists:
        found = iter(lists)
        return [None if cell is None else next(found) for cell in cells]
    return list(cells)


def _json_list(cell: str) -> list[str] | None:
    if not cell.startswith("["):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of the classes that a column of a saved data set numbers, or None."""
    features = huggingface_features(schema)
    feature = features.get(column)
    while isinstance(feature, Mapping) and "names" not in feature and "feature" in feature:
        feature = feature["feature"]  # a list of class labels
    if isinstance(feature, list) and feature:
        feature = feature[0]
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return names if isinstance(names, list) else None


def huggingface_features(schema: pa.Schema) -> Mapping[str, Any]:
    """The features that the library ``datasets`` records in a schema; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}
