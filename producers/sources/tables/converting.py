"""Turn tables into one memory-mapped Arrow file, once; it is kept in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError, InputError
from featurestore.system import durable
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container, cached_file
from producers.sources.tables.columns import Known, choose_columns, require_types
from producers.sources.tables.parsing import batches, column_names

if TYPE_CHECKING:
    import pyarrow as pa

# Raised when the cached form changes.
_FORM = 1
_KEY = b"manyviews"
_TABLES = Known()


@dataclass(frozen=True, slots=True)
class Converted:
    """The cached form of some tables.

    Its columns are ``file`` (number of the table's file), ``id``, ``image``, ``text0`` and so on,
    ``labels`` and ``split``, as far as the tables have them.

    Attributes:
        path: path of the Arrow file.
        table: its content, memory-mapped.
        labels: how labels are written, see :func:`producers.sources.tables.rows.label_values`.
        names: name in the tables of each column.
    """

    path: Path
    table: pa.Table
    labels: str
    names: dict[str, str]


def convert(
    collection: CollectionConfig,
    files: Sequence[Container],
    known: Known = _TABLES,
) -> Converted:
    """The cached form of tables, which is written if there is none of these files yet.

    Args:
        collection: names the columns, see :func:`choose_columns`.
        files: the tables.
        known: names of columns that are recognized.

    Raises:
        ConfigError: a column is missing or has a wrong type, or two tables differ.
        InputError: a table is damaged, or changed while it was read.
    """
    mapping = [collection.id, collection.image, collection.text, collection.labels]
    what = [_FORM, *mapping, collection.split, known.ids, known.images]
    path = cached_file(what, files, ".arrow")
    table = _read_cached(path)
    if table is None:
        _write(path, collection, files, known)
        table = read_file(path)
    values = json.loads(table.schema.metadata[_KEY])
    return Converted(path, table, values["labels"], values["names"])


def _read_cached(path: Path) -> pa.Table | None:
    """The cached form; None if there is none, or it is damaged."""
    import pyarrow as pa

    try:
        return read_file(path)
    except (pa.ArrowException, OSError):
        return None


def read_file(path: Path) -> pa.Table:
    """Maps an Arrow file, of either of Arrow's two formats, into memory.

    Raises:
        pyarrow.ArrowException: it is damaged.
        OSError: it cannot be opened.
    """
    import pyarrow as pa

    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()


def _write(
    path: Path,
    collection: CollectionConfig,
    files: Sequence[Container],
    known: Known,
) -> None:
    """Writes the cached form; its name appears when it is complete."""
    import pyarrow as pa

    with durable.open_replace(path) as target:
        writer: Any = None
        for number, file in enumerate(files):
            source = Path(file.path)
            parsed = column_names(source)
            columns = choose_columns(collection, parsed.schema.names, str(source), known)
            require_types(parsed.schema, columns, str(source))
            for batch in batches(source, columns):
                if writer is None:
                    about = {"labels": parsed.labels, "names": dict(columns.pairs())}
                    schema = batch.schema.append(pa.field("file", pa.int32())).with_metadata(
                        {_KEY: json.dumps(about).encode("ascii")}
                    )
                    writer = pa.ipc.new_file(pa.PythonFile(_Sink(target), "w"), schema)
                writer.write_batch(_fitted(batch, number, writer_schema=schema, file=source))
        if writer is None:
            raise InputError(f"{collection.path} has no rows.")
        writer.close()
        if not all(file.unchanged for file in files):
            raise InputError(
                f"{collection.path} changed while it was read.\nRun the same command again."
            )


def _fitted(batch: pa.RecordBatch, number: int, *, writer_schema: Any, file: Path) -> Any:
    """The batch with the types of the first one and the number of its file."""
    import pyarrow as pa

    expected = writer_schema.names[:-1]
    if batch.schema.names != expected:
        raise ConfigError(
            f"{file} has other columns than the first table: {', '.join(batch.schema.names)}.\n"
            f"Expected {', '.join(expected)}, as there."
        )
    try:
        arrays = [
            array.cast(field.type)
            for array, field in zip(batch.columns, writer_schema, strict=False)
        ]
    except pa.ArrowException as error:
        raise ConfigError(
            f"{file} has columns of other types than the first table: {error}"
        ) from error
    arrays.append(pa.repeat(pa.scalar(number, pa.int32()), batch.num_rows))
    return pa.record_batch(arrays, schema=writer_schema)


class _Sink:
    """The file that Arrow writes to."""

    closed = False

    def __init__(self, target: durable.PartialFile) -> None:
        self._target = target

    def write(self, data: Any) -> int:
        before = self._target.size
        self._target.write(memoryview(data))
        return self._target.size - before

    def tell(self) -> int:
        return self._target.size

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """The file is closed when it has its name."""
