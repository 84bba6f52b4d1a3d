"""The ledger, with one line per committed chunk; a chunk exists only once its line is written.

Workers commit chunks by records (``commits``), which become lines when the store is sealed. Until
then the entries of a ledger are those of its lines and of the records; a line replaces a record.
"""

from __future__ import annotations

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
    LEDGER,
    ChunkEntry,
    StoredRecords,
    checked_parts,
    format_entry,
    parse_entry,
    parse_lines,
)
from featurestore.storage.files import Files, LocalFiles

# Attempts to read records that a seal removes at the same time.
_LOOKS = 5


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
        lines, self.torn_bytes = parse_lines(data, self._chunks, self._rows)
        self._end = len(data) - self.torn_bytes
        self._entries: dict[int, ChunkEntry] = {}
        self._in_order = True
        for _, entry in lines:
            self._add(entry)

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
        """Reads what has changed: only new records, as long as the ledger is the same.

        A record never changes; whoever removes one, with the lock alone, replaces the ledger too.
        """
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        records = recorded(self._files)
        if stamp[0] != self._stamp[0] or not records.issuperset(self.recorded):
            self._load()
            return
        try:
            self._load_records(sorted(records))
            self._stamp = stamp
        except CorruptStoreError:  # or it is a line by now
            self._load()

    def committed_now(self) -> set[int]:
        """The committed chunks, including those that others have recorded since.

        Their entries are not read.
        """
        return recorded(self._files).union(self._entries)

    def is_committed_now(self, chunk: int) -> bool:
        """Whether a chunk is committed, maybe by another process since the ledger was read.

        False may be wrong: for a chunk whose record was sealed since.
        """
        return chunk in self._entries or self._files.stamp(record_name(chunk)) is not None

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
        lines, _ = parse_lines(self._files.read(self.FILE), self._chunks, self._rows)
        return {entry.chunk: line for line, entry in lines}

    def _replace(self, lines: Iterable[bytes]) -> None:
        seen = self._files.read(self.FILE)
        self._files.replace(self.FILE, b"".join(line + b"\n" for line in lines), seen)
        self._load()
