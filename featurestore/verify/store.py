"""Check the promises of a store, independently of the code that writes it.

This module does not use ``Ledger``, ``FeatureStore`` or ``arrays``: it reads the files as specified
in ``docs/store.md``, with the standard library, NumPy and a CRC-32C, so that it detects defects of
the writing code instead of repeating them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.system.refusals import is_folder, status_of
from featurestore.verify.commits import COMMITS, LEDGER, is_record, read_commits
from featurestore.verify.documents import (
    EXTENSION,
    GROUPS,
    StoreRecord,
    check_documents,
    read_record,
)
from featurestore.verify.files import StoreFiles, decoded
from featurestore.verify.findings import Verification
from featurestore.verify.lines import (
    present_samples,
    sample_problems,
    usable_samples,
)
from featurestore.wording import amount

_SAMPLES = "records/samples.jsonl"
# The number of attempts if the store is extended or replaced during a check.
_LOOKS = 5


def verify(root: Path, *, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Checks everything that the store at ``root`` promises.

    Args:
        root: the folder of the store.
        progress: called with (chunks checked, chunks committed) after each chunk.

    Returns:
        The result of the check. Damage is a finding, never an exception.

    Raises:
        StorageError: files could not be read, or there was not enough memory. This is not damage,
            and nothing must be dropped because of it.
    """
    for _ in range(_LOOKS):
        before = _identity(root)
        report = _look(root, progress)
        # Findings made during the merge of an extension, or while chunks are rebuilt, mix two
        # states of the store. A build that only continues just adds lines or records.
        if not report.findings or _identity(root).continues(before):
            break
    return report


@dataclass(frozen=True, slots=True)
class _Identity:
    """What decides which chunks a store has.

    Attributes:
        document: the content of the root document; empty if unreadable.
        ledger: the content of the ledger; empty if unreadable.
        records: inode, size and time of each file beside the records, by name.
    """

    document: bytes
    ledger: bytes
    records: dict[str, tuple[int, int, int]]

    def continues(self, before: _Identity) -> bool:
        """Whether at most chunks were added to an earlier state."""
        kept = {name: self.records.get(name) for name in before.records}
        is_same = self.document == before.document and kept == before.records
        return is_same and self.ledger.startswith(before.ledger)


def _identity(root: Path) -> _Identity:
    document, ledger = (_content(root / name) for name in ("zarr.json", LEDGER))
    records = {}
    with suppress(OSError), os.scandir(root / COMMITS) as entries:
        for entry in entries:
            with suppress(OSError):  # it was removed in this instant
                status = entry.stat()
                records[entry.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return _Identity(document, ledger, records)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the check reports this
        return b""


def _look(root: Path, progress: Callable[[int, int], None] | None) -> Verification:
    report = Verification()
    files = StoreFiles(root, report)
    try:
        record = read_record(root, files)
        if record is not None:
            check_documents(record, files)
            check = _Check(root, report, files, record)
            check.samples()
            check.chunks(progress)
            check.extension()
            check.strays()
    except MemoryError as e:
        raise files.without_memory(e) from e
    files.require_all_read()
    return report


class _Check:
    """One check of one store; all results are added to ``report``."""

    def __init__(
        self, root: Path, report: Verification, files: StoreFiles, record: StoreRecord
    ) -> None:
        self._root, self._report, self._files, self._record = root, report, files, record
        files.known |= {LEDGER, _SAMPLES, *GROUPS}
        report.chunks, report.rows = record.chunks, record.rows

    def samples(self) -> None:
        """Compares the list of samples with its hashes."""
        data = self._files.read(_SAMPLES)
        if data is None:
            return
        try:
            stems = [json.loads(line)[0] for line in data.splitlines()]
            joined = b"\0".join(stem.encode("utf-8", "surrogateescape") for stem in stems)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            self._files.find(_SAMPLES, str(e))
            return
        if len(stems) != self._record.samples:
            self._files.find(
                _SAMPLES, f"{amount(len(stems), 'sample')}, expected {self._record.samples:,}"
            )
        elif hashlib.sha256(data).hexdigest() != self._record.samples_sha256:
            self._files.find(_SAMPLES, "its checksum does not match its content")
        elif hashlib.sha256(joined).hexdigest() != self._record.stems_sha256:
            self._files.find(_SAMPLES, "its stems are not those that the store was built from")

    def chunks(self, progress: Callable[[int, int], None] | None) -> None:
        """Checks what the ledger and the records name: lines, and the files of each chunk."""
        commits = read_commits(self._files, self._report.chunks)
        self._report.committed = commits.lines
        self._report.findings += commits.findings
        self._report.notices += commits.notices
        self._files.known |= set(commits.records)
        for done, (file, body) in enumerate(commits.bodies.values(), 1):
            self._chunk(file, body)
            if progress is not None:
                progress(done, len(commits.bodies))
        missing = self._report.chunks - len(self._report.committed)
        if missing:
            self._report.notices.append(
                f"{missing:,} of {amount(self._report.chunks, 'chunk')} to be built"
            )

    def _chunk(self, line: str, body: dict[str, Any]) -> None:
        """Checks one chunk, whose line is in the file ``line``."""
        chunk = body["chunk"]
        record = self._record
        first = chunk * record.rows
        samples = min(record.rows, record.samples - first)
        if len(body["samples"]) != samples:
            self._files.find(
                line, f"{amount(len(body['samples']), 'sample')}, expected {samples}", chunk
            )
        for problem in sample_problems(body, first, may_lack=record.may_lack):
            self._files.find(line, problem, chunk)
        files = set()
        for name, dim in record.dims.items():
            feature, moments = f"{name}/c.{chunk}.0.0", f"records/moments/{name}/c.{chunk}.0.0"
            files |= {feature, moments}
            rows = self._payload(feature, body, "<f4", record.rows * record.views * dim)
            stored = self._payload(moments, body, "<f8", 2 * dim)
            if rows is not None and stored is not None:
                used = rows.reshape(-1, dim)[: samples * record.views]
                if not np.isnan(rows.reshape(-1, dim)[samples * record.views :]).all():
                    self._files.find(feature, "there are rows after the last sample", chunk)
                used = self._present(name, feature, body, used)
                self._moments(feature, moments, chunk, used, stored.reshape(2, dim))
        self._files.known |= files
        if set(body["files"]) != files:
            self._files.find(line, "the line names other files than the chunk has", chunk)

    def _present(
        self, name: str, file: str, body: dict[str, Any], rows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The rows of the samples with the feature's input; the rest are checked to be zeros.

        Args:
            name: the feature.
            file: the file of its chunk.
            body: the chunk's line.
            rows: float32 ``[n * V, D]``, of all samples.
        """
        modality = self._record.modalities.get(name)
        if modality is None or len(body["samples"]) * self._record.views != len(rows):
            return rows
        present = np.repeat(present_samples(body, modality), self._record.views)
        chunk, nonzero = body["chunk"], rows.any(axis=1)
        if wrong := int((nonzero & ~present).sum()):
            problem = f"{amount(wrong, 'row')} of samples without {modality} not zero"
            self._files.find(file, problem, chunk)
        usable = usable_samples(body, chunk * self._record.rows, modality)
        if self._record.may_lack and usable and not nonzero.any():
            problem = f"every row is zero, and {usable} of its samples have {modality}"
            self._files.find(file, problem, chunk)
        having: npt.NDArray[np.float32] = rows[present]
        return having

    def _payload(
        self, file: str, body: dict[str, Any], dtype: str, count: int
    ) -> npt.NDArray[Any] | None:
        chunk = body["chunk"]
        size, crc = body["files"].get(file, (None, None))
        data = self._files.read(file, chunk)
        if data is None:
            return None
        self._report.files += 1
        compressed = bool(self._record.compression(np.dtype(dtype).name))
        expected = size if compressed else count * np.dtype(dtype).itemsize + 4
        if not len(data) == size == expected:
            self._files.find(
                file, f"{len(data)} bytes, expected {expected}, committed {size}", chunk
            )
            return None
        written = google_crc32c.value(data[:-4]).to_bytes(4, "little")
        expected = count * np.dtype(dtype).itemsize
        payload = decoded(data[:-4], expected) if compressed else data[:-4]
        if data[-4:] != written or f"{google_crc32c.value(payload):08x}" != crc:
            self._files.find(file, "its content is not what was committed", chunk)
            return None
        if len(payload) != expected:
            self._files.find(file, f"{len(payload)} bytes when decoded", chunk)
            return None
        return np.frombuffer(payload, dtype)

    def _moments(
        self,
        feature: str,
        moments: str,
        chunk: int,
        rows: npt.NDArray[np.float32],
        stored: npt.NDArray[np.float64],
    ) -> None:
        if not np.isfinite(rows).all():
            self._files.find(feature, "rows that are not finite were committed", chunk)
            return
        if not len(rows):  # no sample of the chunk has the input
            if stored.any():
                self._files.find(moments, "moments of no rows are not zero", chunk)
            return
        wide = rows.astype(np.float64)
        mean, deviation = wide.mean(axis=0), wide.std(axis=0)
        scale = np.abs(mean) + deviation + np.finfo(np.float64).tiny
        near = np.abs(stored[0] - mean) <= 1e-9 * scale
        near &= np.abs(np.sqrt(stored[1] / len(rows)) - deviation) <= 1e-7 * scale
        if not near.all():  # NaN is not near
            bad = int((~near).sum())
            self._files.find(moments, f"{bad} of {near.size} dimensions do not fit the rows", chunk)

    def extension(self) -> None:
        """Checks an unfinished extension, which is a separate store inside this one."""
        folder = self._root / EXTENSION
        if not is_folder(folder):
            return
        self._report.notices.append("an extension is not finished; build --resume continues it")
        if status_of(folder / "zarr.json") is not None:
            self._report.extension = extension = _look(folder, None)
            for finding in extension.findings:
                self._files.find(f"{EXTENSION}/{finding.file}", finding.problem)

    def strays(self) -> None:
        """Adds notices for uncommitted files, which are never read and so are not damage."""
        for folder, _, names in os.walk(self._root, onerror=self._files.unlisted):
            relative = Path(folder).relative_to(self._root)
            if relative.parts[:2] in (("records", "runs"), ("records", "extension")):
                continue
            for file in sorted((relative / name).as_posix() for name in names):
                # A record that is unknown was created since the records were listed.
                if file not in self._files.known and not is_record(file):
                    self._report.notices.append(f"{file} was not committed and is never read")
