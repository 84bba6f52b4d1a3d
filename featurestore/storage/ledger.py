"""The ledger, with one line per committed chunk; a chunk exists only once its line is written.

Each line is a JSON object that ends with the CRC-32C of all preceding bytes of the line:

    {"chunk": 3, "files": {"clip_image/c.3.0.0": [4587524, "0f3a99c1"], ...},
     "samples": [[image sha256, text sha256, words], ...], "bad": [[index, modality, reason,
     detail], ...], "crc32c": "5d2e71b0"}

A last line without a line feed is a torn append and is dropped; any other line that does not match
its checksum is damage. A torn append never extends beyond the end of its line: if other bytes
follow a complete last line, its line feed was damaged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptStoreError, StorageError
from featurestore.records import BadInput, SampleRecord
from featurestore.storage.arrays import crc32c
from featurestore.system import durable
from featurestore.system.contents import read_bytes


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """One committed chunk.

    Attributes:
        chunk: the chunk's number.
        files: the length in bytes and the payload's CRC-32C, by file of the chunk.
        samples: the records of the chunk's samples, in order.
        changed: fingerprint fields that differed from the store's when the chunk was built, with
            ``--allow-version-change``; usually empty.
    """

    chunk: int
    files: Mapping[str, tuple[int, int]]
    samples: Sequence[SampleRecord]
    changed: Mapping[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> Sequence[BadInput]:
        """The inputs of its samples that placeholders replace, in order."""
        if isinstance(self.samples, _StoredRecords):
            return self.samples.bad
        return [bad for sample in self.samples for bad in sample.bad]


class _StoredRecords(Sequence[SampleRecord]):
    """The samples of a line, which are most of its text, decoded on first access.

    Training never needs them, nor does a build after a commit: for chunks that it committed itself,
    it does not even keep the text, but reads it from the file when needed. Decoding all lines when
    a store of 25,959 samples is opened takes 1.7 times as long, and 9 MiB instead of 4.
    """

    def __init__(
        self, text: bytes | Callable[[], bytes], first_index: int, bad: Sequence[BadInput]
    ) -> None:
        self._text, self._first, self.bad = text, first_index, bad

    @cached_property
    def _records(self) -> list[SampleRecord]:
        bad: dict[int, list[BadInput]] = {}
        for each in self.bad:
            bad.setdefault(each.index, []).append(each)
        try:
            listed = json.loads(self._text if isinstance(self._text, bytes) else self._text())
            return [
                SampleRecord(i, image, text_sha, words, tuple(bad.get(i, ())))
                for i, (image, text_sha, words) in enumerate(listed, self._first)
            ]
        except _BAD_LINE as e:
            what = f"the samples of the line that begins with sample {self._first}: {e}"
            raise CorruptStoreError(Ledger.FILE, what) from None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, item: Any) -> Any:
        return self._records[item]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._records == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list


def format_entry(entry: ChunkEntry) -> bytes:
    """The entry's line, without its line feed."""
    body: dict[str, Any] = {
        "chunk": entry.chunk,
        "files": {name: [size, f"{crc:08x}"] for name, (size, crc) in entry.files.items()},
        "samples": [[s.image_sha256, s.text_sha256, s.words] for s in entry.samples],
        "bad": [[b.index, b.modality, b.reason, b.detail] for s in entry.samples for b in s.bad],
    }
    if entry.changed:
        body["changed"] = dict(entry.changed)
    text = json.dumps(body)[:-1].encode("ascii")
    return text + b', "crc32c": "%08x"}' % crc32c(text)


def parse_entry(line: bytes, rows: int) -> ChunkEntry:
    """Parses one line of the ledger of a store with ``rows`` samples per chunk.

    Raises:
        ValueError: the line is damaged.
    """
    before, samples, after = _checked(line)
    body = json.loads(before + after + b"}")
    chunk, bad = int(body["chunk"]), [BadInput(*each) for each in body["bad"]]
    records = _StoredRecords(samples, chunk * rows, bad)
    files = {name: (size, int(crc, 16)) for name, (size, crc) in body["files"].items()}
    return ChunkEntry(chunk, files, records, body.get("changed", {}))


def _checked(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Splits a line, after checking it, into the text before, of and after its samples.

    No JSON string can contain the separators, because its quotes would be escaped.
    """
    text, separator, tail = line.rpartition(b', "crc32c": "')
    if not separator or tail != b'%08x"}' % crc32c(text):
        raise ValueError("its checksum does not match its content")
    before, samples_key, rest = text.partition(b', "samples": ')
    samples, bad_key, after = rest.partition(b', "bad": ')
    if not (samples_key and bad_key):
        raise ValueError("it has no samples")
    return before, samples, b', "bad": ' + after


# The end of a complete line. No JSON string can contain it, because its quotes would be escaped.
_LINE_END = re.compile(rb', "crc32c": "[0-9a-f]{8}"\}')


def _is_torn(tail: bytes) -> bool:
    """Whether the bytes after the last line feed can be an interrupted append."""
    end = _LINE_END.search(tail)
    return end is None or end.end() == len(tail)


# Exceptions that parsing a line of another format may raise.
_BAD_LINE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Ledger:
    """The committed chunks of one store, by number.

    Reading never writes: :meth:`recover` is for the holder of the store's lock.
    """

    FILE = "records/ledger.jsonl"

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
        except _BAD_LINE as e:
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
        samples = _StoredRecords(read, entry.chunk * self._rows, entry.bad)
        self._end += len(line) + 1
        self._add(replace(entry, samples=samples))

    def _samples_at(self, start: int, size: int) -> bytes:
        """The text of the samples in the line of ``size`` bytes at ``start``."""
        line = read_bytes(self._root / self.FILE, self._root, start, size)
        return _checked(line)[1]

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
