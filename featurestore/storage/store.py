"""A store opened for reading; ``shape`` describes it, ``creation`` creates it, ``writer`` fills it.

    STORE/zarr.json                      a Zarr v3 group; its attributes describe the store
    STORE/<feature>/                     one array per feature, float32 [N, V, D]
    STORE/records/samples.jsonl          the samples, in order
    STORE/records/ledger.jsonl           the committed chunks
    STORE/records/commits/               chunks that workers have committed, until it is sealed
    STORE/records/moments/<feature>/     float64 [chunks, 2, D]: mean and m2 of each chunk's rows
    STORE/records/extension/             an addition under construction
    STORE/records/runs/                  logs and the lock, which may differ between equal builds

The root's ``zarr.json`` is written last: without it the store does not exist yet, and an
interrupted creation starts again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptStoreError, InputError, StoreMismatchError
from featurestore.records import BadInput, Modality, SampleRecord, stems_sha256
from featurestore.samples import SampleList
from featurestore.storage import arrays
from featurestore.storage.files import Files, LocalFiles
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.moments import Moments, merge
from featurestore.storage.shape import ArraySpec, StoreSpec, parse_shape
from featurestore.system.refusals import is_file, is_folder
from featurestore.wording import amount

SCHEMA = 3
RECORDS = "records"
RUNS = "records/runs"
SAMPLES = "records/samples.jsonl"
LOCK = "records/runs/lock"
EXTENSION = "records/extension"


def root_document(spec: StoreSpec, fingerprint: Fingerprint, listing: bytes) -> bytes:
    """The root's ``zarr.json`` of a store whose list of samples is the file ``listing``."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "shape": {**asdict(spec), "dims": dict(spec.dims), "modalities": dict(spec.modalities)},
        "fingerprint": fingerprint,
        "samples_sha256": hashlib.sha256(listing).hexdigest(),
    }
    record["crc32c"] = record_crc32c(record)
    return arrays.group_document({"manyviews": record})


def record_crc32c(record: Mapping[str, Any]) -> str:
    """CRC-32C of a record without its key ``crc32c``, as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "crc32c"}
    return f"{arrays.crc32c(json.dumps(rest, sort_keys=True).encode('ascii')):08x}"


def is_store(path: Path) -> bool:
    """Whether ``path`` is a store; raises StorageError if that cannot be determined."""
    return is_file(path / "zarr.json")


class FeatureStore:
    """A store opened for reading; safe while a build is writing to it.

    Attributes:
        path: the store's folder.
        spec: the store's shape.
        fingerprint: all settings that affect the features.
        files: its files.
        ledger: the committed chunks at the time when the store was opened.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the store at ``path``.

        Raises:
            InputError: there is no store.
            StoreMismatchError: the store was written with another schema version.
            CorruptStoreError: its records are damaged.
            StorageError: its records cannot be read.
        """
        self.path = Path(path)
        if not is_store(self.path):
            if is_folder(self.path / EXTENSION / "final"):
                raise InputError(
                    f"{self.path} has an extension whose merge is not finished.\n"
                    "Finish it with `build --resume`; nothing is lost."
                )
            raise InputError(
                f"There is no feature store at {self.path}.\n"
                "Expected a folder that `build --store` created."
            )
        attributes = arrays.parse_document(self.path, "zarr.json").get("attributes", {})
        record = attributes.get("manyviews") if isinstance(attributes, dict) else None
        if not isinstance(record, dict):
            raise InputError(f"{self.path} is a Zarr group, but manyviews did not create it.")
        if record.get("schema") != SCHEMA:
            advice = "Read it with the version that wrote it, or build it again."
            raise StoreMismatchError(self.path, "schema", record.get("schema"), SCHEMA, advice)
        if record.get("crc32c") != record_crc32c(record):
            raise CorruptStoreError(
                "zarr.json", "its manyviews attributes are not what was written"
            )
        try:
            self.spec = parse_shape(record["shape"])
            self.fingerprint: Fingerprint = dict(record["fingerprint"])
            self._samples_sha256 = record["samples_sha256"]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CorruptStoreError("zarr.json", f"its manyviews attributes: {e!r}") from None
        self._codecs = {
            name: arrays.check_array_document(self.path, self.spec.feature(name))
            for name in self.features
        }
        self.files: Files = LocalFiles(self.path)
        self.ledger = Ledger(self.files, self.spec.chunks, self.spec.chunk)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the store's features."""
        return tuple(self.spec.dims)

    @property
    def seed(self) -> int:
        """The base seed of the views."""
        return int(self.fingerprint["seed"])

    def array(self, feature: str) -> ArraySpec:
        """The array of a feature on disk; its ``codec`` is ``rewritten`` if it was rewritten."""
        return replace(self.spec.feature(feature), codec=self._codecs[feature])

    @cached_property
    def samples(self) -> SampleList:
        """All samples, in order.

        Raises:
            CorruptStoreError: the list is damaged.
        """
        data = self.files.read(SAMPLES)
        if hashlib.sha256(data).hexdigest() != self._samples_sha256:
            raise CorruptStoreError(SAMPLES, "its checksum does not match its content")
        samples = SampleList(data)
        try:
            stems = stems_sha256(sample.stem for sample in samples)
        except (AttributeError, TypeError, ValueError) as e:
            raise CorruptStoreError(SAMPLES, f"it is not a list of samples: {e}") from None
        if stems != self.fingerprint.get("stems_sha256"):
            raise CorruptStoreError(SAMPLES, "its stems are not those the store was built from")
        return samples

    @property
    def stems_sha256(self) -> str:
        """Hash of the samples' stems in order, known without reading the samples."""
        return str(self.fingerprint["stems_sha256"])

    @property
    def stems(self) -> list[str]:
        """The samples' stems, in order."""
        return [s.stem for s in self.samples]

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return self.ledger.complete

    def committed(self, chunks: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether each sample belongs to one of the given chunks, bool ``[N]``.

        Raises:
            InputError: a chunk is not committed.
        """
        chosen = np.zeros(self.spec.samples, bool)
        for chunk in chunks:
            if chunk not in self.ledger:
                raise InputError(f"Chunk {chunk} of {self.path} is not committed (any more).")
            samples = self.spec.samples_of(chunk)
            chosen[samples.start : samples.stop] = True
        return chosen

    @property
    def bad_inputs(self) -> list[BadInput]:
        """The inputs that placeholders replace, in the order of the samples."""
        return [bad for entry in self.ledger.entries for bad in entry.bad]

    @property
    def records(self) -> list[SampleRecord]:
        """The records of the committed samples, in order."""
        return [s for e in self.ledger.entries for s in e.samples]

    def read_chunk(self, feature: str, chunk: int) -> npt.NDArray[np.float32]:
        """Reads a committed chunk and checks it against its checksum.

        Returns:
            float32 ``[n, V, D]``.

        Raises:
            CorruptStoreError: the chunk is not committed, missing or damaged.
        """
        spec = self.array(feature)
        if chunk not in self.ledger:
            raise CorruptStoreError(spec.file(chunk), "the chunk is not committed", chunk=chunk)
        return self._read(spec, chunk)

    def _read(self, spec: ArraySpec, chunk: int) -> npt.NDArray[Any]:
        """Reads a committed chunk of an array and compares it with the ledger's checksum."""
        file = spec.file(chunk)
        _, crc = self.ledger[chunk].files.get(file, (0, -1))  # no content has the checksum -1
        return arrays.read_chunk(self.path, spec, chunk, crc)

    def moments(self, feature: str, chunks: Sequence[int] | None = None) -> Moments:
        """Moments over the rows of the samples that have a feature's input, in order of the chunks.

        Args:
            feature: the feature's name.
            chunks: the committed chunks to include; all of a complete store by default.

        Raises:
            InputError: the store is not complete, and ``chunks`` is None; or no sample has the
                input.
            CorruptStoreError: a chunk's moments are missing or damaged.
        """
        if chunks is None:
            self.require_complete()
            chunks = range(self.spec.chunks)
        parts = [self.chunk_moments(feature, chunk) for chunk in chunks]
        if not any(part.count for part in parts):
            raise InputError(
                f"No sample of {self.path} has the input of {feature}: there is nothing to take a "
                "z-score from.\nLeave the feature out, or use zscore 'none'."
            )
        return merge(parts)

    def chunk_moments(self, feature: str, chunk: int) -> Moments:
        """Moments over the rows of a feature in a committed chunk.

        Raises:
            CorruptStoreError: the chunk is not committed, or its moments are missing or damaged.
        """
        spec = self.spec.moments(feature)
        if chunk not in self.ledger:
            raise CorruptStoreError(spec.file(chunk), "the chunk is not committed", chunk=chunk)
        mean, m2 = self._read(spec, chunk)[0]
        entry, samples = self.ledger[chunk], len(self.spec.samples_of(chunk))
        if entry.lacks_inputs:
            samples = int(self.spec.present(feature, entry.samples).sum())
        return Moments(samples * self.spec.views, mean, m2)

    def present(self, feature: str) -> npt.NDArray[np.bool_]:
        """Whether each sample has the input of a feature, bool ``[N]``.

        True for samples that are not committed yet. The rows of a sample without it are zeros.
        """
        present = np.ones(self.spec.samples, bool)
        for entry in self.ledger.entries:
            if entry.lacks_inputs:
                samples = self.spec.samples_of(entry.chunk)
                present[samples.start : samples.stop] = self.spec.present(feature, entry.samples)
        return present

    @property
    def absent(self) -> dict[Modality, int]:
        """The number of committed samples without an input, by modality that a feature uses.

        A modality that no sample lacks is not listed.
        """
        used = {modality: name for name, modality in self.spec.modalities.items()}
        counts = {modality: int((~self.present(used[modality])).sum()) for modality in sorted(used)}
        return {modality: count for modality, count in counts.items() if count}

    def require_complete(self) -> None:
        """Raises InputError if chunks are missing."""
        if not self.complete:
            done, chunks = len(self.ledger), self.spec.chunks
            raise InputError(
                f"{self.path} is not complete: {done:,} of {amount(chunks, 'chunk')} committed.\n"
                "Finish it with `build --resume`."
            )
