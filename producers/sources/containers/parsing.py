"""Parse tables into Arrow batches of bounded size: CSV, TSV, JSONL and Parquet.

Every batch has the columns of ``Columns.pairs`` under their names in the cached form. Cells of CSV
and TSV stay strings: no id ``0012`` becomes 12. Row numbers count from 0, as the ids do.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError
from featurestore.wording import one_line
from producers.sources.containers.columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa

# The longest row of a CSV file is shorter than this.
_BLOCK_BYTES = 2**25
_BATCH_BYTES = 2**24
_BATCH_ROWS = 2**15
_JSONL_ROWS = 2**12


@dataclass(frozen=True, slots=True)
class Parsed:
    """A table that can be read.

    Attributes:
        schema: the schema, with the table's own names.
        labels: how labels are written, see :func:`producers.sources.containers.rows.label_values`.
    """

    schema: pa.Schema
    labels: str


def column_names(path: Path) -> Parsed:
    """The columns of a table, without their values.

    Raises:
        InputError: the file is no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return Parsed(pq.read_schema(path), "typed")
        names = _jsonl_names(path) if suffix == ".jsonl" else _csv_names(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    form = "json" if suffix == ".jsonl" else "text"
    return Parsed(pa.schema([(name, pa.string()) for name in names]), form)


def batches(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The rows of a table, in order.

    Raises:
        InputError: the file is damaged, a row has a wrong type, or a text is not UTF-8.
    """
    import pyarrow as pa

    suffix = path.suffix.lower()
    read = {".parquet": _parquet, ".jsonl": _jsonl}.get(suffix, _csv)
    row = 0
    try:
        for batch in read(path, columns):
            yield _checked(batch, path, row)
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"The table {path} cannot be read: {one_line(error, 300)}\n"
        "Expected a complete CSV, TSV, JSONL or Parquet file in UTF-8."
    )


def not_utf8(path: Path, where: str) -> InputError:
    """The error for a table with bytes that are no UTF-8 text."""
    return InputError(f"{path} is not UTF-8: {where}.\nSave the table as UTF-8.")


# CSV and TSV ----------------------------------------------------------------------------------


def _csv_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise not_utf8(path, "it begins with a UTF-16 byte order mark")
    try:
        names: list[str] = _open_csv(path, None).schema.names
    except UnicodeDecodeError:
        raise not_utf8(path, "the names of the columns") from None
    return names


def _open_csv(path: Path, names: Sequence[str] | None) -> Any:
    import pyarrow as pa
    import pyarrow.csv as pc

    convert = {"check_utf8": False, "null_values": [], "strings_can_be_null": False}
    if names is not None:
        convert["include_columns"] = list(names)
        convert["column_types"] = dict.fromkeys(names, pa.binary())
    return pc.open_csv(
        path,
        read_options=pc.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=pc.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=pc.ConvertOptions(**convert),
    )


def _csv(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    items = columns.pairs()
    schema = pa.schema([(key, pa.large_string()) for key, _ in items])
    row = 0
    for batch in _open_csv(path, sorted({name for _, name in items})):
        arrays = []
        for _, name in items:
            cells = batch.column(name)
            try:
                arrays.append(cells.cast(pa.large_binary()).cast(pa.large_string()))
            except pa.ArrowInvalid:
                where = f"row {row + _undecodable(cells)}, column {name!r}"
                raise not_utf8(path, where) from None
        yield from _slices(pa.record_batch(arrays, schema=schema))
        row += batch.num_rows


def _undecodable(cells: pa.Array) -> int:
    for row, cell in enumerate(cells.to_pylist()):
        try:
            cell.decode("utf-8")
        except UnicodeDecodeError:
            return row
    return 0


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, _BATCH_ROWS):
        yield batch.slice(start, _BATCH_ROWS)


# JSON lines -----------------------------------------------------------------------------------


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


def _jsonl_names(path: Path) -> list[str]:
    names: dict[str, None] = {}
    for value in _objects(path):
        names.update(dict.fromkeys(value))
    return list(names)


def _jsonl(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    texts = pa.list_(pa.large_string())
    items = columns.pairs()
    schema = pa.schema(
        [(k, texts if k.startswith("text") else pa.large_string()) for k, _ in items]
    )
    rows: list[list[Any]] = []
    for number, value in enumerate(_objects(path)):
        rows.append([_json_value(path, number, key, name, value.get(name)) for key, name in items])
        if len(rows) == _JSONL_ROWS:
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


# Parquet --------------------------------------------------------------------------------------


def _parquet(path: Path, columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    items = columns.pairs()
    names = sorted({name for _, name in items})
    # Without pre-buffering, pages are read one after the other, however large a row group is.
    with pq.ParquetFile(
        path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
    ) as file:
        for group in range(file.num_row_groups):
            rows = _rows_at_once(file.metadata.row_group(group), names)
            for batch in file.iter_batches(
                rows, row_groups=[group], columns=names, use_threads=False
            ):
                arrays = [_plain(batch.column(name)) for _, name in items]
                yield pa.record_batch(arrays, names=[key for key, _ in items])


def _rows_at_once(group: Any, names: Sequence[str]) -> int:
    """The number of rows whose values in these columns take about ``_BATCH_BYTES``."""
    used = (group.column(i) for i in range(group.num_columns))
    taken = sum(
        column.total_uncompressed_size
        for column in used
        if column.path_in_schema.partition(".")[0] in names
    )
    average = max(1, taken // max(1, group.num_rows))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // average)))


def _plain(array: pa.Array) -> pa.Array:
    import pyarrow.types as t

    return array.dictionary_decode() if t.is_dictionary(array.type) else array


def _checked(batch: pa.RecordBatch, path: Path, first_row: int) -> pa.RecordBatch:
    """The batch, whose strings are checked to be UTF-8: Parquet's readers do not check them."""
    import pyarrow as pa

    if path.suffix.lower() != ".parquet":
        return batch  # checked already
    for key, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            for row in range(len(array)):
                try:
                    array.slice(row, 1).validate(full=True)
                except pa.ArrowInvalid:
                    raise not_utf8(path, f"row {first_row + row}, the {key}") from None
    return batch
