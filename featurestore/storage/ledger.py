"""The ledger, with one line per committed chunk; a chunk exists only once its line is written.

Workers commit chunks by records (``commits``), which become lines when the store is sealed. Until
then the entries of a ledger are those of its lines and of the records; a line replaces a record.

A last line without a line feed is a torn append and is dropped; any other line that does not match
its checksum is damage. A torn append never extends beyond the end of its line: if other bytes
follow a complete last line, its line feed was damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

from featurestore.errors import ChunkConflictError, CorruptStoreError, StorageError
from featurestore.storage.commits import (
    COMMITS,
    read_record,
    record_name,
    recorded,
    recorded_line,
    remove_records,
)
from featurestore.storage.entries import (
    BAD_LINE,
    LEDGER,
    ChunkEntry,
    StoredRecords,
    checked_parts,
    format_entry,
    parse_entry,
)
from featurestore.storage.files import Files, LocalFiles

# Attempts to read records that a seal removes at the same time.
_LOOKS = 5
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

    def __init__(self, files: Files, chunks: int, rows: int) -> None:
        """Reads the ledger of a store with ``chunks`` chunks of ``rows`` samples.

        Args:
            files: the files of the store.
            chunks: number of chunks of the complete store.
            rows: number of samples per chunk.

        Raises:
            CorruptStoreError: the file is missing; or a record, or a line other than a torn last
                one, is damaged.
        """
        self._files = files
        self._chunks = chunks
        self._rows = rows
        self._failed = False
        self._load()

    def _load(self) -> None:
        self._stamp = self._stamp_now()
        for _ in range(_LOOKS):
            # Records first: see ``commits``.
            records = recorded(self._files)
            self._load_lines()
            try:
                self._load_records(sorted(records))
            except CorruptStoreError as e:
                if e.chunk not in records - recorded(self._files):
                    raise
            else:
                return
        raise CorruptStoreError(COMMITS, "records disappear again and again")

    def _load_lines(self) -> None:
        data = self._files.read(self.FILE)
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

    def _load_records(self, chunks: Sequence[int]) -> None:
        self.recorded = chunks
        for chunk in chunks:
            if chunk not in self._entries:
                self._add(read_record(self._files, chunk, self._chunks, self._rows)[1])

    def _stamp_now(self) -> tuple[object, object]:
        """Changes whenever the ledger or a record is written."""
        return self._files.stamp(self.FILE), self._files.stamp(COMMITS)

    @property
    def is_current(self) -> bool:
        """Whether the file is unchanged since it was read."""
        return self._stamp == self._stamp_now()

    def _read_line(self, number: int, line: bytes) -> None:
        entry = self._parsed(number, line)
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

    @property
    def _local(self) -> LocalFiles:
        """The files, for what only a file system can do."""
        if not isinstance(self._files, LocalFiles):
            raise NotImplementedError("lines can be appended to local files only")
        return self._files

    def recover(self) -> int:
        """Removes a torn last line; returns its size in bytes. Needs the store's lock."""
        torn, self.torn_bytes = self.torn_bytes, 0
        if torn:
            self._local.truncate(self.FILE, self._end)
        return torn

    def commit(self, entry: ChunkEntry) -> None:
        """Appends ``entry``; once this returns, the chunk is committed durably.

        The caller holds the store's lock alone.

        Raises:
            StorageError: the append failed, or an earlier one did, whose torn line only the next
                build removes.
        """
        if self._failed:
            reason = "an earlier append to it failed; open the store again"
            raise StorageError(self._local.root / self.FILE, reason)
        line = format_entry(entry)
        self._failed = True
        self._local.append_line(self.FILE, line)
        self._failed = False
        self._keep(entry, partial(self._samples_at, self._end, len(line)))
        self._end += len(line) + 1

    def record(self, entry: ChunkEntry) -> None:
        """Commits ``entry`` by a record; several processes may do so at the same time.

        Raises:
            ChunkConflictError: another process has committed the chunk with other bytes.
            StorageError: the record cannot be written.
        """
        line = format_entry(entry)
        if not self._files.create(record_name(entry.chunk), line):
            first, where = self._first_line(entry.chunk)
            if first not in (line, None):
                raise ChunkConflictError(entry.chunk, where)
        # The record is removed when the store is sealed, which another process may do.
        self._keep(entry, checked_parts(line)[1])

    def is_recorded(self, entry: ChunkEntry) -> bool:
        """Whether this chunk is committed, by whichever process.

        Versions that are allowed to differ may give other bytes; then the first result stays.

        Raises:
            ChunkConflictError: it is, with other bytes of the same versions.
        """
        line, where = self._first_line(entry.chunk)
        if line is None:
            return False
        if line != format_entry(entry) and parse_entry(line, self._rows).changed == entry.changed:
            raise ChunkConflictError(entry.chunk, where)
        return True

    def _first_line(self, chunk: int) -> tuple[bytes | None, str]:
        """The line of a chunk that any process has committed, and its file; None if none has."""
        line = recorded_line(self._files, chunk)
        if line is not None:
            return line, record_name(chunk)
        if self._stamp[0] != self._files.stamp(self.FILE):
            self._load()  # the store was sealed
        committed = self._entries.get(chunk)
        return (None if committed is None else format_entry(committed)), self.FILE

    def refresh(self) -> None:
        """Reads the file and the records again, if one of them has changed."""
        if not self.is_current:
            self._load()

    def committed_now(self) -> set[int]:
        """The committed chunks, including those that others have recorded since.

        Their entries are not read.
        """
        return recorded(self._files).union(self._entries)

    def _keep(self, entry: ChunkEntry, text: bytes | Callable[[], bytes]) -> None:
        """Adds a committed entry without the records of its samples, which are read if needed."""
        first = entry.chunk * self._rows
        samples = StoredRecords(text, first, entry.bad, lacks_inputs=entry.lacks_inputs)
        self._add(replace(entry, samples=samples))

    def _samples_at(self, start: int, size: int) -> bytes:
        """The text of the samples in the line of ``size`` bytes at ``start``."""
        return checked_parts(self._files.read(self.FILE, start, size))[1]

    def drop(self, chunks: Collection[int]) -> None:
        """Removes some chunks, which are then uncommitted. Needs the store's lock.

        Their records are removed first: a line that is left without its record still counts.
        """
        self.seal()
        self._replace([line for chunk, line in self._lines().items() if chunk not in chunks])

    def seal(self) -> None:
        """Turns all records into lines, in the order of the chunks; then removes the records.

        Can be interrupted and repeated. Several processes that do this at the same time write the
        same bytes, as long as none of them adds a chunk.
        """
        if self._in_order and not self.recorded:
            return
        lines = self._lines()
        for chunk in self.recorded:
            if chunk not in lines:
                line = recorded_line(self._files, chunk)
                if line is None:  # another process seals the store
                    return
                lines[chunk] = line
        self._replace([lines[chunk] for chunk in sorted(lines)])
        remove_records(self._files, recorded(self._files).intersection(lines))
        self._load()

    def _lines(self) -> dict[int, bytes]:
        """The complete lines of the file, by chunk, in the order of the file."""
        lines = self._files.read(self.FILE).split(b"\n")[:-1]
        return {self._parsed(number, line).chunk: line for number, line in enumerate(lines, 1)}

    def _parsed(self, number: int, line: bytes) -> ChunkEntry:
        """The entry of a line; raises CorruptStoreError if the line is damaged."""
        try:
            return parse_entry(line, self._rows)
        except BAD_LINE as e:
            raise CorruptStoreError(self.FILE, f"line {number}: {e}") from None

    def _replace(self, lines: Iterable[bytes]) -> None:
        seen = self._files.read(self.FILE)
        self._files.replace(self.FILE, b"".join(line + b"\n" for line in lines), seen)
        self._load()
