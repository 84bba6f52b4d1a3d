"""Records: how several processes commit chunks to one store, before it is sealed.

    STORE/records/commits/00000012       exactly the ledger's line of chunk 12, without a line feed

A record is created after the chunk's files are durable, and never changed. It names neither a
writer nor a time: a chunk is a pure function of its inputs, so that two processes that build the
same chunk create the same record, and different ones reveal a broken machine. When every chunk is
committed the store is sealed: the records become lines of the ledger, in the order of the chunks.

A chunk is committed if the ledger or a record names it. Readers list the records first and read the
ledger afterwards: a record that a seal has removed meanwhile is a line of that ledger.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from featurestore.errors import CorruptStoreError
from featurestore.storage.entries import BAD_LINE, ChunkEntry, parse_entry
from featurestore.storage.files import Files

COMMITS = "records/commits"
_NAME = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}")


def record_name(chunk: int) -> str:
    """The name of a chunk's record in the store."""
    return f"{COMMITS}/{chunk:08d}"


def recorded(files: Files) -> set[int]:
    """The chunks that have a record."""
    return {int(name) for name in files.names(COMMITS) if _NAME.fullmatch(name)}


def read_record(files: Files, chunk: int, chunks: int, rows: int) -> tuple[bytes, ChunkEntry]:
    """Reads the record of a chunk of a store with ``chunks`` chunks of ``rows`` samples.

    Returns:
        The line, and its content.

    Raises:
        CorruptStoreError: the record is missing or damaged.
    """
    name = record_name(chunk)
    line = recorded_line(files, chunk)
    if line is None:
        raise CorruptStoreError(name, "the file is missing", chunk=chunk)
    try:
        entry = parse_entry(line, rows)
    except BAD_LINE as e:
        raise CorruptStoreError(name, str(e), chunk=chunk) from None
    if entry.chunk != chunk or not 0 <= chunk < chunks:
        raise CorruptStoreError(name, f"it names chunk {entry.chunk} of {chunks}", chunk=chunk)
    return line, entry


def recorded_line(files: Files, chunk: int) -> bytes | None:
    """The line in a chunk's record; None if there is no record."""
    try:
        return files.read(record_name(chunk))
    except CorruptStoreError:  # there is none
        return None


def remove_records(files: Files, chunks: Iterable[int]) -> None:
    """Removes records, and their folder if nothing else is in it."""
    files.remove(record_name(chunk) for chunk in chunks)
