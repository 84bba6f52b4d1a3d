"""Check the promises of a store, independently of the code that writes it.

This module does not use ``Ledger``, ``FeatureStore`` or ``arrays``: it reads the files as specified
in ``docs/store.md``, with the standard library, NumPy and a CRC-32C, so that it detects defects of
the writing code instead of repeating them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.system.refusals import is_folder, status_of
from featurestore.verify.files import StoreFiles, decoded
from featurestore.verify.findings import Verification
from featurestore.verify.lines import read_line, sample_problems, unended_line
from featurestore.wording import amount

_SCHEMA = 3
_LEDGER = "records/ledger.jsonl"
_SAMPLES = "records/samples.jsonl"
_GROUPS = ("zarr.json", "records/zarr.json", "records/moments/zarr.json")
_EXTENSION = "records/extension"
# The number of attempts if the store is extended or replaced during a check.
_LOOKS = 5
# Keys of a Zarr document that have no effect if they are empty.
_SILENT = ("storage_transformers", "consolidated_metadata")


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
        # states of the store. A build that only continues just appends lines to the ledger.
        if not report.findings:
            break
        after = _identity(root)
        if after[0] == before[0] and after[1].startswith(before[1]):
            break
    return report


def _identity(root: Path) -> tuple[bytes, bytes]:
    """The content of the store's root document and of its ledger; empty if unreadable."""
    contents = []
    for name in ("zarr.json", _LEDGER):
        try:
            contents.append((root / name).read_bytes())
        except OSError:  # the check reports this
            contents.append(b"")
    return contents[0], contents[1]


def _look(root: Path, progress: Callable[[int, int], None] | None) -> Verification:
    report = Verification()
    check = _Check(root, report)
    try:
        if check.read_root():
            check.documents()
            check.samples()
            check.chunks(progress)
            check.extension()
            check.strays()
    except MemoryError as e:
        raise check.files.without_memory(e) from e
    check.files.require_all_read()
    return report


class _Check:
    """One check of one store; all results are added to ``report``.

    Attributes:
        files: the store's files.
    """

    def __init__(self, root: Path, report: Verification) -> None:
        self._root = root
        self._report = report
        self.files = StoreFiles(root, report)
        self.files.known |= {_LEDGER, _SAMPLES, *_GROUPS}
        self._n = self._v = self._k = 0
        self._dims: dict[str, int] = {}
        self._codec = "none"
        self._samples_sha256 = self._stems_sha256 = ""
        self._root_document: dict[str, Any] = {}

    def read_root(self) -> bool:
        """Reads the store's own record; False if it is damaged."""
        pending = self._root / _EXTENSION / "final/zarr.json"
        if status_of(self._root / "zarr.json") is None and status_of(pending) is not None:
            self.files.find("zarr.json", "an extension is being merged; build --resume finishes it")
            return False
        document = self._root_document = self.files.object("zarr.json")
        if not document:
            return False
        try:
            record = document["attributes"]["manyviews"]
            if record["schema"] != _SCHEMA:
                raise ValueError(f"schema {record['schema']!r}, this version reads {_SCHEMA}")
            rest = {key: value for key, value in record.items() if key != "crc32c"}
            crc = google_crc32c.value(json.dumps(rest, sort_keys=True).encode("ascii"))
            if record["crc32c"] != f"{crc:08x}":
                raise ValueError("they do not match their checksum")
            shape, fingerprint = record["shape"], record["fingerprint"]
            self._n, self._v, self._k = shape["samples"], shape["views"], shape["chunk"]
            self._dims = dict(shape["dims"])
            self._codec = shape.get("codec", "none")
            self._samples_sha256 = record["samples_sha256"]
            self._stems_sha256 = fingerprint["stems_sha256"]
            sizes = (self._n, self._v, self._k)
            if not all(type(s) is int and s > 0 for s in (*sizes, *self._dims.values())):
                raise ValueError(f"shape {shape}")
            if sizes != tuple(fingerprint[key] for key in ("samples", "views", "chunk")):
                raise ValueError("shape and fingerprint disagree")
            if self._codec not in ("none", "zstd") or self._codec != fingerprint.get(
                "codec", "none"
            ):
                raise ValueError(f"codec {self._codec!r}")
        except (KeyError, TypeError, ValueError) as e:
            self.files.find("zarr.json", f"its manyviews attributes: {e}")
            return False
        self._report.chunks, self._report.rows = -(-self._n // self._k), self._k
        return True

    def _arrays(self) -> Iterator[tuple[str, list[int], int, str]]:
        """Name, shape, chunk length and dtype of each array."""
        for name, dim in self._dims.items():
            yield name, [self._n, self._v, dim], self._k, "float32"
            yield f"records/moments/{name}", [self._report.chunks, 2, dim], 1, "float64"

    def documents(self) -> None:
        """Checks the Zarr documents, which other libraries use to read the arrays."""
        for file in _GROUPS:
            document = self._root_document if file == "zarr.json" else self.files.object(file)
            # The content of the root's attributes is checked by ``read_root``.
            attributes = document.get("attributes") if file == "zarr.json" else {}
            self._compare(file, document, {"node_type": "group", "attributes": attributes})
        for name, shape, rows, dtype in self._arrays():
            file = f"{name}/zarr.json"
            grid = {"name": "regular", "configuration": {"chunk_shape": [rows, *shape[1:]]}}
            axes = ("chunk", "moment") if rows == 1 and dtype == "float64" else ("sample", "view")
            expected = {
                "node_type": "array",
                "shape": shape,
                "data_type": dtype,
                "chunk_grid": grid,
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": "NaN",
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    *self._compression(dtype),
                    {"name": "crc32c"},
                ],
                "attributes": {},
                "dimension_names": [*axes, "dim"],
            }
            self._compare(file, self.files.object(file), expected)

    def _compression(self, dtype: str) -> list[dict[str, Any]]:
        """The compression codecs of an array; moments are never compressed."""
        if self._codec == "none" or dtype == "float64":
            return []
        return [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]

    def _compare(self, file: str, document: dict[str, Any], expected: dict[str, Any]) -> None:
        """Compares a Zarr document with its expected content; other keys must have no effect."""
        if not document:
            return  # unreadable, which is already a finding
        expected = {"zarr_format": 3, **expected}
        for key in sorted(document.keys() | expected.keys()):
            actual, value = document.get(key), expected.get(key)
            if actual != value and (key in expected or actual or key not in _SILENT):
                self.files.find(file, f"{key} is {actual!r}, expected {value!r}")

    def samples(self) -> None:
        """Compares the list of samples with its hashes."""
        data = self.files.read(_SAMPLES)
        if data is None:
            return
        try:
            stems = [json.loads(line)[0] for line in data.splitlines()]
            joined = b"\0".join(stem.encode("utf-8", "surrogateescape") for stem in stems)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            self.files.find(_SAMPLES, str(e))
            return
        if len(stems) != self._n:
            self.files.find(_SAMPLES, f"{amount(len(stems), 'sample')}, expected {self._n:,}")
        elif hashlib.sha256(data).hexdigest() != self._samples_sha256:
            self.files.find(_SAMPLES, "its checksum does not match its content")
        elif hashlib.sha256(joined).hexdigest() != self._stems_sha256:
            self.files.find(_SAMPLES, "its stems are not those that the store was built from")

    def chunks(self, progress: Callable[[int, int], None] | None) -> None:
        """Checks every line of the ledger, and every file that it names."""
        bodies = list(self._ledger_lines())
        for done, body in enumerate(bodies, 1):
            self._chunk(body)
            if progress is not None:
                progress(done, len(bodies))
        missing = self._report.chunks - len(self._report.committed)
        if missing:
            self._report.notices.append(
                f"{missing:,} of {amount(self._report.chunks, 'chunk')} to be built"
            )

    def _ledger_lines(self) -> Iterator[dict[str, Any]]:
        data = self.files.read(_LEDGER)
        if data is None:
            return
        lines = data.split(b"\n")
        tail = lines.pop()
        if whole := unended_line(tail):
            self.files.find(_LEDGER, f"line {len(lines) + 1} is whole, but no line feed ends it")
            lines.append(whole)  # a repair writes it again
        elif tail:
            self._report.notices.append("the ledger ends in a torn line, which a build removes")
        for number, line in enumerate(lines, 1):
            body = read_line(line)
            chunk = body.get("chunk")
            if type(chunk) is not int:
                self.files.find(_LEDGER, f"line {number} is not what was committed")
            elif not 0 <= chunk < self._report.chunks:
                self.files.find(
                    _LEDGER, f"line {number} names chunk {chunk} of {self._report.chunks}"
                )
            elif chunk in self._report.committed:
                self.files.find(_LEDGER, f"line {number} names chunk {chunk} again")
            else:
                self._report.committed[chunk] = line
                yield body

    def _chunk(self, body: dict[str, Any]) -> None:
        chunk = body["chunk"]
        samples = min(self._k, self._n - chunk * self._k)
        if len(body["samples"]) != samples:
            self.files.find(
                _LEDGER, f"{amount(len(body['samples']), 'sample')}, expected {samples}", chunk
            )
        for problem in sample_problems(body, chunk * self._k):
            self.files.find(_LEDGER, problem, chunk)
        files = set()
        for name, dim in self._dims.items():
            feature, moments = f"{name}/c.{chunk}.0.0", f"records/moments/{name}/c.{chunk}.0.0"
            files |= {feature, moments}
            rows = self._payload(feature, body, "<f4", self._k * self._v * dim)
            stored = self._payload(moments, body, "<f8", 2 * dim)
            if rows is not None and stored is not None:
                used = rows.reshape(-1, dim)[: samples * self._v]
                if not np.isnan(rows.reshape(-1, dim)[samples * self._v :]).all():
                    self.files.find(feature, "there are rows after the last sample", chunk)
                self._moments(feature, moments, chunk, used, stored.reshape(2, dim))
        self.files.known |= files
        if set(body["files"]) != files:
            self.files.find(_LEDGER, "the line names other files than the chunk has", chunk)

    def _payload(
        self, file: str, body: dict[str, Any], dtype: str, count: int
    ) -> npt.NDArray[Any] | None:
        chunk = body["chunk"]
        size, crc = body["files"].get(file, (None, None))
        data = self.files.read(file, chunk)
        if data is None:
            return None
        self._report.files += 1
        compressed = bool(self._compression(np.dtype(dtype).name))
        expected = size if compressed else count * np.dtype(dtype).itemsize + 4
        if not len(data) == size == expected:
            self.files.find(
                file, f"{len(data)} bytes, expected {expected}, committed {size}", chunk
            )
            return None
        written = google_crc32c.value(data[:-4]).to_bytes(4, "little")
        expected = count * np.dtype(dtype).itemsize
        payload = decoded(data[:-4], expected) if compressed else data[:-4]
        if data[-4:] != written or f"{google_crc32c.value(payload):08x}" != crc:
            self.files.find(file, "its content is not what was committed", chunk)
            return None
        if len(payload) != expected:
            self.files.find(file, f"{len(payload)} bytes when decoded", chunk)
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
            self.files.find(feature, "rows that are not finite were committed", chunk)
            return
        wide = rows.astype(np.float64)
        mean, deviation = wide.mean(axis=0), wide.std(axis=0)
        scale = np.abs(mean) + deviation + np.finfo(np.float64).tiny
        near = np.abs(stored[0] - mean) <= 1e-9 * scale
        near &= np.abs(np.sqrt(stored[1] / len(rows)) - deviation) <= 1e-7 * scale
        if not near.all():  # NaN is not near
            bad = int((~near).sum())
            self.files.find(moments, f"{bad} of {near.size} dimensions do not fit the rows", chunk)

    def extension(self) -> None:
        """Checks an unfinished extension, which is a separate store inside this one."""
        folder = self._root / _EXTENSION
        if not is_folder(folder):
            return
        self._report.notices.append("an extension is not finished; build --resume continues it")
        if status_of(folder / "zarr.json") is not None:
            self._report.extension = extension = _look(folder, None)
            for finding in extension.findings:
                self.files.find(f"{_EXTENSION}/{finding.file}", finding.problem)

    def strays(self) -> None:
        """Adds notices for uncommitted files, which are never read and so are not damage."""
        for folder, _, names in os.walk(self._root, onerror=self.files.unlisted):
            relative = Path(folder).relative_to(self._root)
            if relative.parts[:2] in (("records", "runs"), ("records", "extension")):
                continue
            for file in sorted((relative / name).as_posix() for name in names):
                if file not in self.files.known:
                    self._report.notices.append(f"{file} was not committed and is never read")
