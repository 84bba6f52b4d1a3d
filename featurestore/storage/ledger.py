"""The ledger, with one line per committed chunk; a chunk exists only once its line is written.

A last line without a line feed is a torn append and is dropped; any other line that does not match
its checksum is damage. A torn append never extends beyond the end of its line: if other bytes
follow a complete last line, its line feed was damaged.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from featurestore.errors import CorruptStoreError, StorageError
from featurestore.storage.entries import (
    BAD_LINE,
    LEDGER,
    ChunkEntry,
    StoredRecords,
    checked_parts,
    format_entry,
    parse_entry,
)
from featurestore.system import durable
from featurestore.system.contents import read_bytes

# The end of a complete line. No JSON string can contain it, because its quotes would be escaped.
_LINE_END = re.compile(rb', "crc32c": "[0-9a-f]{8}"\}')


def _is_torn(tail: bytes) -> bool:
    """Whether the bytes after the last line feed can be an interrupted append."""
    end = _LINE_END.search(tail)
    return end is None or end.end() == len(tail)


class Ledger:
    """The committed chunks of one store, by number.

    Reading never writes: :meth:`recover` is for the holder of the store's lock.
    """

    FILE = LEDGER

    def __init__(self, root: Path, chunks: int, rows: int) -> None:
        """Reads the ledger of the store at ``root`` with ``chunks`` chunks of ``rows`` samples.

        Raises:
            CorruptStoreError: the file is missing, or a line other than a torn last one is damaged.
        """
        self._root = root
        self._chunks = chunks
        self._rows = rows
        self._failed = False
        self._load()

    def _load(self) -> None:
        self._stamp = self._stamp_now()
        data = read_bytes(self._root / self.FILE, self._root)
        whole, _, torn = data.rpartition(b"\n")
        self.torn_bytes = len(torn)
        self._end = len(data) - len(torn)
        self._entries: dict[int, ChunkEntry] = {}
        self._in_order = True
        lines = whole.split(b"\n") if whole else []
        for number, line in enumerate(lines, 1):
            self._read_line(number, line)
        if not _is_torn(torn):
            problem = f"line {len(lines) + 1} is whole, but no line feed ends it"
            raise CorruptStoreError(self.FILE, problem)

    def _stamp_now(self) -> tuple[int, ...]:
        """Inode, size and time of the file, which a write changes; empty if they are unknown."""
        try:
            status = (self._root / self.FILE).stat()
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns

    @property
    def is_current(self) -> bool:
        """Whether the file is unchanged since it was read."""
        return self._stamp == self._stamp_now()

    def _read_line(self, number: int, line: bytes) -> None:
        try:
            entry = parse_entry(line, self._rows)
        except BAD_LINE as e:
            raise CorruptStoreError(self.FILE, f"line {number}: {e}") from None
        chunk = entry.chunk
        if not 0 <= chunk < self._chunks:
            raise CorruptStoreError(
                self.FILE, f"line {number} names chunk {chunk} of {self._chunks}"
            )
        if chunk in self._entries:
            raise CorruptStoreError(self.FILE, f"line {number} names chunk {chunk} again")
        self._add(entry)

    def _add(self, entry: ChunkEntry) -> None:
        self._in_order = self._in_order and (
            not self._entries or entry.chunk > next(reversed(self._entries))
        )
        self._entries[entry.chunk] = entry

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._entries

    def __getitem__(self, chunk: int) -> ChunkEntry:
        return self._entries[chunk]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[ChunkEntry]:
        """The entries of the committed chunks, in the order of the chunks' numbers."""
        return [self._entries[c] for c in sorted(self._entries)]

    @property
    def committed(self) -> list[int]:
        """The numbers of the committed chunks, in order."""
        return sorted(self._entries)

    @property
    def missing(self) -> list[int]:
        """The numbers of the chunks that are not committed, in order."""
        return [c for c in range(self._chunks) if c not in self._entries]

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return len(self._entries) == self._chunks

    def recover(self) -> int:
        """Removes a torn last line; returns its size in bytes. Needs the store's lock."""
        torn, self.torn_bytes = self.torn_bytes, 0
        if torn:
            durable.truncate(self._root / self.FILE, self._end)
        return torn

    def commit(self, entry: ChunkEntry) -> None:
        """Appends ``entry``; once this returns, the chunk is committed durably.

        Raises:
            StorageError: the append failed, or an earlier one did, whose torn line only the next
                build removes.
        """
        path = self._root / self.FILE
        if self._failed:
            raise StorageError(path, "an earlier append to it failed; open the store again")
        line = format_entry(entry)
        self._failed = True
        durable.append_line(path, line)
        self._failed = False
        # The caller holds the lock, so that the line keeps its position.
        read = partial(self._samples_at, self._end, len(line))
        first = entry.chunk * self._rows
        samples = StoredRecords(read, first, entry.bad, lacks_inputs=entry.lacks_inputs)
        self._end += len(line) + 1
        self._add(replace(entry, samples=samples))

    def _samples_at(self, start: int, size: int) -> bytes:
        """The text of the samples in the line of ``size`` bytes at ``start``."""
        line = read_bytes(self._root / self.FILE, self._root, start, size)
        return checked_parts(line)[1]

    def drop(self, chunks: Collection[int]) -> None:
        """Removes the lines of some chunks, which are then uncommitted. Needs the store's lock."""
        self._write([entry for entry in self.entries if entry.chunk not in chunks])

    def sort(self) -> None:
        """Sorts the lines by chunk number, the order that an uninterrupted build writes."""
        if self._in_order:
            return
        self._write(self.entries)

    def _write(self, entries: Iterable[ChunkEntry]) -> None:
        lines = b"".join(format_entry(entry) + b"\n" for entry in entries)
        durable.replace_file(self._root / self.FILE, lines)
        self._load()
