"""The lines of the ledger: JSON objects that end with the CRC-32C of all their preceding bytes.

    {"chunk": 3, "files": {"clip_image/c.3.0.0": [4587524, "0f3a99c1"], ...},
     "samples": [[image sha256, text sha256, words], ...], "bad": [[index, modality, reason,
     detail], ...], "crc32c": "5d2e71b0"}

The digest of an input that the sample does not have is null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from featurestore.errors import CorruptStoreError
from featurestore.records import BadInput, SampleRecord
from featurestore.storage.arrays import crc32c

LEDGER = "records/ledger.jsonl"
# Exceptions that parsing a line of another format may raise.
BAD_LINE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
# The end of a complete line. No JSON string can contain it, because its quotes would be escaped.
_LINE_END = re.compile(rb', "crc32c": "[0-9a-f]{8}"\}')


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
        if isinstance(self.samples, StoredRecords):
            return self.samples.bad
        return [bad for sample in self.samples for bad in sample.bad]

    @property
    def lacks_inputs(self) -> bool:
        """Whether a sample has no image or no text; does not decode the records of the samples."""
        if isinstance(self.samples, StoredRecords):
            return self.samples.lacks_inputs
        return any(None in (s.image_sha256, s.text_sha256) for s in self.samples)


class StoredRecords(Sequence[SampleRecord]):
    """The samples of a line, which are most of its text, decoded on first access.

    Training never needs them, nor does a build after a commit: for chunks that it committed itself,
    it does not even keep the text, but reads it from the file when needed. Decoding all lines when
    a store of 25,959 samples is opened takes 1.7 times as long, and 9 MiB instead of 4.
    """

    def __init__(
        self,
        text: bytes | Callable[[], bytes],
        first_index: int,
        bad: Sequence[BadInput],
        *,
        lacks_inputs: bool,
    ) -> None:
        self._text, self._first, self.bad = text, first_index, bad
        self.lacks_inputs = lacks_inputs

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
        except BAD_LINE as e:
            what = f"the samples of the line that begins with sample {self._first}: {e}"
            raise CorruptStoreError(LEDGER, what) from None

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
    before, samples, after = checked_parts(line)
    body = json.loads(before + after + b"}")
    chunk, bad = int(body["chunk"]), [BadInput(*each) for each in body["bad"]]
    # The digest of an absent input is null; hex digests and numbers contain no n. One letter is
    # found ten times as fast as the word.
    lacks_inputs = b"n" in samples
    records = StoredRecords(samples, chunk * rows, bad, lacks_inputs=lacks_inputs)
    files = {name: (size, int(crc, 16)) for name, (size, crc) in body["files"].items()}
    return ChunkEntry(chunk, files, records, body.get("changed", {}))


def checked_parts(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Checks the CRC-32C of a ledger line; splits it before and after the value of ``samples``.

    No JSON string can contain the separators, because its quotes would be escaped.

    Returns:
        The JSON text before the samples, that of the samples, and the text after them.

    Raises:
        ValueError: the checksum does not match, or there are no samples.
    """
    text, separator, tail = line.rpartition(b', "crc32c": "')
    if not separator or tail != b'%08x"}' % crc32c(text):
        raise ValueError("its checksum does not match its content")
    before, samples_key, rest = text.partition(b', "samples": ')
    samples, bad_key, after = rest.partition(b', "bad": ')
    if not (samples_key and bad_key):
        raise ValueError("it has no samples")
    return before, samples, b', "bad": ' + after


def parse_lines(data: bytes, chunks: int, rows: int) -> tuple[list[tuple[bytes, ChunkEntry]], int]:
    """Parses the ledger of a store with ``chunks`` chunks of ``rows`` samples.

    A last line without a line feed is a torn append and is left out; any other line that does not
    match its checksum is damage. A torn append never extends beyond the end of its line: if other
    bytes follow a complete last line, its line feed was damaged.

    Returns:
        The lines without their line feeds, each with its entry, in order; and the size of the torn
        last line in bytes.

    Raises:
        CorruptStoreError: a line is damaged, or names a wrong chunk, or one that another line does.
    """
    whole, _, torn = data.rpartition(b"\n")
    lines: list[tuple[bytes, ChunkEntry]] = []
    named: set[int] = set()
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            entry = parse_entry(line, rows)
        except BAD_LINE as e:
            raise CorruptStoreError(LEDGER, f"line {number}: {e}") from None
        problem = "" if 0 <= entry.chunk < chunks else f" of {chunks}"
        problem = problem or (" again" if entry.chunk in named else "")
        if problem:
            raise CorruptStoreError(LEDGER, f"line {number} names chunk {entry.chunk}{problem}")
        named.add(entry.chunk)
        lines.append((line, entry))
    if not _is_torn(torn):
        problem = f"line {len(lines) + 1} is whole, but no line feed ends it"
        raise CorruptStoreError(LEDGER, problem)
    return lines, len(torn)


def _is_torn(tail: bytes) -> bool:
    """Whether the bytes after the last line feed can be an interrupted append."""
    end = _LINE_END.search(tail)
    return end is None or end.end() == len(tail)
