"""Reads which chunks a store has committed, for ``verify``: the records first, then the ledger.

Independent of the code that writes them, see ``docs/store.md``.
"""

from __future__ import annotations

import re
from typing import Any

from featurestore.verify.files import StoreFiles
from featurestore.verify.findings import Finding
from featurestore.verify.lines import read_line, unended_line
from featurestore.wording import amount

LEDGER = "records/ledger.jsonl"
COMMITS = "records/commits"

# The number of attempts if the store is sealed while its records are read.
_LOOKS = 5
_NAME = re.compile(r"[0-9]{8}|[1-9][0-9]{8,}")
_DAMAGED = "it is not what was committed"


class Commits:
    """What the ledger and the records of a store name at one moment; the ledger wins.

    Attributes:
        lines: the intact line of each committed chunk.
        bodies: the content of each line, with the file that holds it, by chunk.
        findings: the damage to the ledger and to records.
        notices: remarks about them.
        records: the names of all records.
    """

    def __init__(self, files: StoreFiles, chunks: int) -> None:
        self._files, self._chunks = files, chunks
        self.lines: dict[int, bytes] = {}
        self.bodies: dict[int, tuple[str, dict[str, Any]]] = {}
        self.findings: list[Finding] = []
        self.notices: list[str] = []
        self.records: list[str] = []
        self._recorded = self._repeated = 0
        self._disappeared: list[str] = []

    def read(self) -> bool:
        """Reads everything.

        Returns:
            Whether nothing was removed meanwhile. False while a seal turns records into lines.
        """
        # Records first: one that a seal removes after this is a line of the ledger that is read.
        self.records = record_names(self._files)
        data = self._files.read_if_present(LEDGER)
        if data is None:
            self._find(LEDGER, "No such file or directory")
        else:
            self._read_lines(data)
        for name in self.records:
            self._read_record(name)
        if self._repeated:
            verb = "repeats a line" if self._repeated == 1 else "repeat lines"
            removed = "it" if self._repeated == 1 else "them"
            self.notices.append(
                f"{amount(self._repeated, 'record')} {verb} of the ledger; the next build removes "
                f"{removed}"
            )
        if self._recorded and len(self.lines) == self._chunks:
            self.notices.append(
                f"every chunk is committed, {self._recorded:,} of {self._chunks:,} by records: "
                "`build --resume` seals the store"
            )
        remaining = record_names(self._files) if self._disappeared else []
        for name in self._disappeared:
            self._find(name, "No such file or directory", int(name.rpartition("/")[2]))
        return not set(self._disappeared) - set(remaining)

    def _read_lines(self, data: bytes) -> None:
        lines = data.split(b"\n")
        tail = lines.pop()
        if whole := unended_line(tail):
            self._find(LEDGER, f"line {len(lines) + 1} is whole, but no line feed ends it")
            lines.append(whole)  # a repair writes it again
        elif tail:
            self.notices.append("the ledger ends in a torn line, which a build removes")
        for number, line in enumerate(lines, 1):
            body = read_line(line)
            chunk = body.get("chunk")
            if type(chunk) is not int:
                self._find(LEDGER, f"line {number} is not what was committed")
            elif not 0 <= chunk < self._chunks:
                self._find(LEDGER, f"line {number} names chunk {chunk} of {self._chunks}")
            elif chunk in self.lines:
                self._find(LEDGER, f"line {number} names chunk {chunk} again")
            else:
                self._add(chunk, LEDGER, line, body)

    def _read_record(self, name: str) -> None:
        chunk = int(name.rpartition("/")[2])
        line = self._files.read_if_present(name)
        if line is None:
            if chunk not in self.lines and not self._files.is_unread(name):
                self._disappeared.append(name)
            return
        body = read_line(line)
        if not 0 <= chunk < self._chunks:
            self._find(name, f"it is the record of chunk {chunk} of {self._chunks}")
        elif chunk in self.lines:
            self._compare(name, chunk, line)
        elif not body:
            self._find(name, _DAMAGED, chunk)
        elif body["chunk"] != chunk:
            self._find(name, f"it names chunk {body['chunk']}", chunk)
        else:
            self._recorded += 1
            self._add(chunk, name, line, body)

    def _compare(self, name: str, chunk: int, line: bytes) -> None:
        """Compares a record with the line of its chunk, which is valid in any case."""
        if line == self.lines[chunk]:
            self._repeated += 1
        else:
            self._find(name, f"it differs from the ledger's line of chunk {chunk}, which is valid")

    def _add(self, chunk: int, file: str, line: bytes, body: dict[str, Any]) -> None:
        self.lines[chunk], self.bodies[chunk] = line, (file, body)

    def _find(self, file: str, problem: str, chunk: int | None = None) -> None:
        self.findings.append(Finding(file, chunk, problem))


def read_commits(files: StoreFiles, chunks: int) -> Commits:
    """Reads the ledger and the records of a store with ``chunks`` chunks."""
    for _ in range(_LOOKS):
        commits = Commits(files, chunks)
        if commits.read():
            break
    return commits


def record_names(files: StoreFiles) -> list[str]:
    """The names of the records in the store; other files in their folder decide nothing."""
    return [f"{COMMITS}/{n}" for n in files.names(COMMITS) if _NAME.fullmatch(n)]


def is_record(file: str) -> bool:
    """Whether a file of a store has the name of a record."""
    folder, _, name = file.rpartition("/")
    return folder == COMMITS and _NAME.fullmatch(name) is not None
