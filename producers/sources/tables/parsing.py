"""Parse tables into Arrow batches of bounded size: CSV, TSV, JSONL and Parquet.

Every batch has the columns of ``Columns.pairs`` under their names in the cached form. Cells of CSV
and TSV stay strings: no id ``0012`` becomes 12. Row numbers count from 0, as the ids do.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError
from featurestore.wording import one_line
from producers.sources.tables import jsonl
from producers.sources.tables.columns import Columns
from producers.sources.tables.jsonl import not_utf8

if TYPE_CHECKING:
    import pyarrow as pa

# The longest row of a CSV file is shorter than this.
_BLOCK_BYTES = 2**25
_BATCH_BYTES = 2**24
_BATCH_ROWS = 2**15


@dataclass(frozen=True, slots=True)
class Parsed:
    """A table that can be read.

    Attributes:
        schema: the schema, with the table's own names.
        labels: how labels are written, see :func:`producers.sources.tables.rows.label_values`.
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
        names = jsonl.names(path) if suffix == ".jsonl" else _csv_names(path)
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
    read = {".parquet": _parquet, ".jsonl": jsonl.batches}.get(suffix, _csv)
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
