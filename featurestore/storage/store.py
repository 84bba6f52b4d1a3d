"""The shape of a store, and a store opened for reading; ``writer`` makes and resumes one.

    STORE/zarr.json                      a Zarr v3 group; its attributes describe the store
    STORE/<feature>/                     one array per feature, float32 [N, V, D]
    STORE/records/samples.jsonl          the samples, in order
    STORE/records/ledger.jsonl           the committed chunks
    STORE/records/moments/<feature>/     float64 [chunks, 2, D]: mean and m2 of each chunk's rows
    STORE/records/extension/             what is being added, until it is complete
    STORE/records/runs/                  logs and the lock: all that may differ between equal builds

The root's ``zarr.json`` is written last: without it a store does not exist yet, and a creation that
was killed is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, CorruptStoreError, InputError, StoreMismatchError
from featurestore.records import BadInput, SampleRecord, stems_sha256
from featurestore.samples import SampleList
from featurestore.storage import arrays
from featurestore.storage.arrays import ArraySpec
from featurestore.storage.codecs import CODECS, NONE
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.moments import Moments, merge
from featurestore.system import durable
from featurestore.system.refusals import is_file, is_folder
from featurestore.wording import amount

SCHEMA = 2
RECORDS = "records"
RUNS = "records/runs"
SAMPLES = "records/samples.jsonl"
LOCK = "records/runs/lock"
EXTENSION = "records/extension"


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """The shape of a store.

    Attributes:
        samples: N.
        views: V, the clean one included.
        chunk: K, samples per chunk.
        dims: D per feature, in the order they are made.
        codec: of the features' chunks, ``none`` or ``zstd``.
    """

    samples: int
    views: int
    chunk: int
    dims: Mapping[str, int]
    codec: str = NONE

    def feature(self, name: str) -> ArraySpec:
        """The array of a feature, float32 ``[N, V, D]``."""
        shape = (self.samples, self.views, self.dims[name])
        return ArraySpec(name, shape, self.chunk, "<f4", self.codec)

    def moments(self, name: str) -> ArraySpec:
        """The array of a feature's moments, float64 ``[chunks, 2, D]``."""
        return ArraySpec(f"{RECORDS}/moments/{name}", (self.chunks, 2, self.dims[name]), 1, "<f8")

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.chunk)

    def samples_of(self, chunk: int) -> range:
        """Indices of the samples of a chunk."""
        return range(chunk * self.chunk, min(self.samples, (chunk + 1) * self.chunk))


def _page_step(views: int, dims: Mapping[str, int]) -> int:
    return max(arrays.aligned_rows(views * dim * 4) for dim in dims.values())


def chunk_fits(chunk: int, views: int, dims: Mapping[str, int]) -> bool:
    """Whether chunks of so many samples fill whole pages of memory."""
    return chunk % _page_step(views, dims) == 0


def choose_chunk(asked: int, views: int, dims: Mapping[str, int]) -> int:
    """Samples per chunk: ``asked``, or for 0 at least 64 so that they fill whole memory pages.

    Raises:
        ConfigError: ``asked`` samples do not fill whole memory pages, so training could not map
            the chunks.
    """
    step = _page_step(views, dims)
    if asked == 0:
        return max(64, step)
    if asked % step:
        raise ConfigError(
            f"--chunk {asked} does not fill whole memory pages with {rows_of(views, dims)}: "
            f"use a multiple of {step}."
        )
    return asked


def rows_of(views: int, dims: Mapping[str, int]) -> str:
    """A sample's rows in words: ``10 views (features of 32, 96 and 64 numbers)``."""
    *most, last = (f"{dim:,}" for dim in dims.values())
    numbers = f"{', '.join(most)} and {last}" if most else last
    return f"{amount(views, 'view')} (features of {numbers} numbers)"


def root_document(spec: StoreSpec, fingerprint: Fingerprint, listing: bytes) -> bytes:
    """The root's ``zarr.json`` of a store whose list of samples is the file ``listing``."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "shape": {**asdict(spec), "dims": dict(spec.dims)},
        "fingerprint": fingerprint,
        "samples_sha256": hashlib.sha256(listing).hexdigest(),
    }
    record["crc32c"] = record_crc32c(record)
    return arrays.group_document({"manyviews": record})


def record_crc32c(record: Mapping[str, Any]) -> str:
    """CRC-32C of the store's own record, without this entry, as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "crc32c"}
    return f"{arrays.crc32c(json.dumps(rest, sort_keys=True).encode('ascii')):08x}"


def _parse_shape(shape: Mapping[str, Any]) -> StoreSpec:
    spec = StoreSpec(**shape)
    numbers = (spec.samples, spec.views, spec.chunk, *spec.dims.values())
    if not spec.dims or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"no shape of a store: {dict(shape)}")
    if spec.codec not in CODECS:
        raise ValueError(f"codec {spec.codec!r}, known are {', '.join(CODECS)}")
    return spec


def is_store(path: Path) -> bool:
    """Whether there is a store at ``path``; raises StorageError where nobody can tell."""
    return is_file(path / "zarr.json")


class FeatureStore:
    """A store opened for reading; safe while a build is writing to it.

    Attributes:
        path: its folder.
        spec: its shape.
        fingerprint: everything that changes its numbers.
        ledger: the committed chunks as they were when the store was opened.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the store at ``path``.

        Raises:
            InputError: there is no store.
            StoreMismatchError: it was written by another schema version.
            CorruptStoreError: its records are damaged.
            StorageError: they cannot be read.
        """
        self.path = Path(path)
        if not is_store(self.path):
            if is_folder(self.path / EXTENSION / "final"):
                raise InputError(
                    f"{self.path} was extended, and that is not finished.\n"
                    "Finish it with `build --resume`; nothing is lost."
                )
            raise InputError(
                f"There is no feature store at {self.path}.\n"
                "Expected a folder that `build --store` made."
            )
        found = arrays.parse_document(self.path, "zarr.json").get("attributes", {})
        record = found.get("manyviews") if isinstance(found, dict) else None
        if not isinstance(record, dict):
            raise InputError(f"{self.path} is a Zarr group, but not one that manyviews made.")
        if record.get("schema") != SCHEMA:
            advice = "Read it with the version that wrote it, or build it again."
            raise StoreMismatchError(self.path, "schema", record.get("schema"), SCHEMA, advice)
        if record.get("crc32c") != record_crc32c(record):
            raise CorruptStoreError(
                "zarr.json", "its manyviews attributes are not what was written"
            )
        try:
            self.spec = _parse_shape(record["shape"])
            self.fingerprint: Fingerprint = dict(record["fingerprint"])
            self._samples_sha256 = record["samples_sha256"]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CorruptStoreError("zarr.json", f"its manyviews attributes: {e!r}") from None
        self._codecs = {
            name: arrays.check_array_document(self.path, self.spec.feature(name))
            for name in self.features
        }
        self.ledger = Ledger(self.path, self.spec.chunks, self.spec.chunk)

    @property
    def features(self) -> tuple[str, ...]:
        """The features it holds."""
        return tuple(self.spec.dims)

    @property
    def seed(self) -> int:
        """The base seed of its views."""
        return int(self.fingerprint["seed"])

    def array(self, feature: str) -> ArraySpec:
        """The array of a feature as it lies on the disk, by ``codec`` perhaps rewritten."""
        return replace(self.spec.feature(feature), codec=self._codecs[feature])

    @cached_property
    def samples(self) -> SampleList:
        """All samples, in order.

        Raises:
            CorruptStoreError: the list is damaged.
        """
        data = durable.read_bytes(self.path / SAMPLES, self.path)
        if hashlib.sha256(data).hexdigest() != self._samples_sha256:
            raise CorruptStoreError(SAMPLES, "its checksum does not fit its content")
        samples = SampleList(data)
        try:
            stems = stems_sha256(sample.stem for sample in samples)
        except (AttributeError, TypeError, ValueError) as e:
            raise CorruptStoreError(SAMPLES, f"it is no list of samples: {e}") from None
        if stems != self.fingerprint.get("stems_sha256"):
            raise CorruptStoreError(SAMPLES, "its stems are not those the store was built from")
        return samples

    @property
    def stems_sha256(self) -> str:
        """Hash of the samples' stems in order, which is known without reading them."""
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
        """Which samples are of the given chunks, bool ``[N]``.

        Raises:
            InputError: a chunk is not committed.
        """
        found = np.zeros(self.spec.samples, bool)
        for chunk in chunks:
            if chunk not in self.ledger:
                raise InputError(f"Chunk {chunk} of {self.path} is not committed (any more).")
            samples = self.spec.samples_of(chunk)
            found[samples.start : samples.stop] = True
        return found

    @property
    def bad_inputs(self) -> list[BadInput]:
        """The inputs that placeholders stand in for, in the order of the samples."""
        return [bad for entry in self.ledger.entries for bad in entry.bad]

    @property
    def records(self) -> list[SampleRecord]:
        """What became known of each committed sample, in order."""
        return [s for e in self.ledger.entries for s in e.samples]

    def read_chunk(self, feature: str, chunk: int) -> npt.NDArray[np.float32]:
        """Reads a committed chunk and checks it against its checksum.

        Returns:
            float32 ``[n, V, D]``.

        Raises:
            CorruptStoreError: not committed, missing or damaged.
        """
        spec = self.array(feature)
        if chunk not in self.ledger:
            raise CorruptStoreError(spec.file(chunk), "the chunk is not committed", chunk=chunk)
        return self._read(spec, chunk)

    def _read(self, spec: arrays.ArraySpec, chunk: int) -> npt.NDArray[Any]:
        """Reads a committed chunk of an array, and checks it against the ledger's line."""
        file = spec.file(chunk)
        _, crc = self.ledger[chunk].files.get(file, (0, -1))  # -1 fits no content
        return arrays.read_chunk(self.path, spec, chunk, crc)

    def moments(self, feature: str, chunks: Sequence[int] | None = None) -> Moments:
        """Moments over all rows of a feature, merged in the order of the chunks.

        Args:
            feature: its name.
            chunks: the committed chunks to take them over; all of a complete store by default.

        Raises:
            InputError: the store is not complete, so they would be moments of something else.
            CorruptStoreError: a chunk's moments are missing or damaged.
        """
        if chunks is None:
            self.require_complete()
            chunks = range(self.spec.chunks)
        return merge(self.chunk_moments(feature, chunk) for chunk in chunks)

    def chunk_moments(self, feature: str, chunk: int) -> Moments:
        """Moments over a committed chunk's rows of a feature.

        Raises:
            CorruptStoreError: not committed, missing or damaged.
        """
        spec = self.spec.moments(feature)
        if chunk not in self.ledger:
            raise CorruptStoreError(spec.file(chunk), "the chunk is not committed", chunk=chunk)
        mean, m2 = self._read(spec, chunk)[0]
        return Moments(len(self.spec.samples_of(chunk)) * self.spec.views, mean, m2)

    def require_complete(self) -> None:
        """Raises InputError where chunks are missing."""
        if not self.complete:
            done, chunks = len(self.ledger), self.spec.chunks
            raise InputError(
                f"{self.path} is not complete: {done:,} of {amount(chunks, 'chunk')} committed.\n"
                "Finish it with `build --resume`."
            )
