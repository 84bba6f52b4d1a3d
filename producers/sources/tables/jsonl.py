"""Parse tables of JSON lines, row by row: a row may hold a string where another holds a list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError
from featurestore.wording import one_line
from producers.sources.tables.columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 2**12


def not_utf8(path: Path, where: str) -> InputError:
    """The error for a table with bytes that are no UTF-8 text."""
    return InputError(f"{path} is not UTF-8: {where}.\nSave the table as UTF-8.")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The object of every line that is not blank."""
    row = 0
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except UnicodeDecodeError:
                raise not_utf8(path, f"row {row}") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"Row {row} of {path} is not JSON: {one_line(error)}") from None
            if not isinstance(value, dict):
                raise _wrong(path, row, "the row", value, "a JSON object")
            yield value
            row += 1


def names(path: Path) -> list[str]:
    """The keys of all rows, in the order in which they occur first.

    Raises:
        InputError: a line is not UTF-8, or no JSON object.
    """
    found: dict[str, None] = {}
    for value in _objects(path):
        found.update(dict.fromkeys(value))
    return list(found)


def batches(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The rows, in order; see :func:`producers.sources.tables.parsing.batches`.

    Raises:
        InputError: a value has a wrong type, or a line is not UTF-8 or no JSON object.
    """
    import pyarrow as pa

    texts = pa.list_(pa.large_string())
    items = columns.pairs()
    schema = pa.schema(
        [(k, texts if k.startswith("text") else pa.large_string()) for k, _ in items]
    )
    rows: list[list[Any]] = []
    for number, value in enumerate(_objects(path)):
        rows.append([_json_value(path, number, key, name, value.get(name)) for key, name in items])
        if len(rows) == _ROWS:
            yield _batch(rows, schema)
            rows = []
    if rows:
        yield _batch(rows, schema)


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = [pa.array(column, field.type) for column, field in zip(zip(*rows), schema)]  # noqa: B905
    return pa.record_batch(arrays, schema=schema)


def _json_value(path: Path, row: int, key: str, name: str, value: Any) -> Any:
    """A value of a JSONL row in the cached form, where labels are JSON."""
    where = f"column {name!r}"
    if value is None:
        return None
    if key == "labels":
        return _json_label(path, row, where, value)
    if key.startswith("text"):
        listed = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, str) for item in listed):
            raise _wrong(path, row, where, value, "a string or a list of strings")
        return [_encodable(path, row, where, item) for item in listed if item is not None]
    if key == "image" and isinstance(value, dict):
        if value.get("bytes"):
            raise _wrong(path, row, where, value, "the path of an image: JSON has no bytes")
        value = value.get("path")
        if value is None:
            return None
    if key == "id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        expected = "a string or an integer" if key == "id" else "a string"
        raise _wrong(path, row, where, value, expected)
    return _encodable(path, row, where, value)


def _json_label(path: Path, row: int, where: str, value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    allowed = (str, int) if isinstance(value, list) else (str, int, float)
    if not all(item is None or isinstance(item, allowed) for item in listed):
        raise _wrong(path, row, where, value, "a string, a number, or a list of strings")
    return json.dumps(value)


def _encodable(path: Path, row: int, where: str, text: str) -> str:
    """The text; JSON may escape a lone surrogate, which is not Unicode text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise not_utf8(path, f"row {row}, {where} has a lone surrogate") from None
    return text


def _wrong(path: Path, row: int, where: str, value: Any, expected: str) -> InputError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    return InputError(f"Row {row} of {path}: {where} is {shown}.\nExpected {expected}.")
