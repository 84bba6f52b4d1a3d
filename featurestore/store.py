"""Create, open and resume a store; what is done and what remains.

    STORE/zarr.json                      a Zarr v3 group; its attributes describe the store
    STORE/<feature>/                     one array per feature, float32 [N, V, D]
    STORE/records/samples.jsonl          the samples, in order
    STORE/records/ledger.jsonl           the committed chunks
    STORE/records/moments/<feature>/     float64 [chunks, 2, D]: mean and m2 of each chunk's rows
    STORE/records/runs/                  logs and the lock: all that may differ between equal builds

The root's ``zarr.json`` is written last: without it a store does not exist yet, and a creation that
was killed is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import arrays, durable
from featurestore.arrays import ArraySpec
from featurestore.config import Fingerprint
from featurestore.errors import ConfigError, CorruptStoreError, InputError, StoreMismatchError
from featurestore.ledger import ChunkEntry, Ledger
from featurestore.moments import Moments, merge, moments_of
from featurestore.records import FEATURES, BadInput, Sample, SampleRecord, stems_sha256

SCHEMA = 1
RECORDS = "records"
RUNS = "records/runs"
SAMPLES = "records/samples.jsonl"
LOCK = "records/runs/lock"

# What a store is made of, besides ``records`` itself and the runs in it.
_ROOT_ENTRIES = {"zarr.json", *FEATURES}
_RECORDS_ENTRIES = {"zarr.json", "moments", *(Path(f).name for f in (SAMPLES, Ledger.FILE))}


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """The shape of a store.

    Attributes:
        samples: N.
        views: V, the clean one included.
        chunk: K, samples per chunk.
        dims: D per feature, in the order they are made.
    """

    samples: int
    views: int
    chunk: int
    dims: Mapping[str, int]

    def feature(self, name: str) -> ArraySpec:
        """The array of a feature, float32 ``[N, V, D]``."""
        shape = (self.samples, self.views, self.dims[name])
        return ArraySpec(name, shape, self.chunk, "<f4")

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


def choose_chunk(asked: int, views: int, dims: Mapping[str, int]) -> int:
    """Samples per chunk: as asked for, or 64, or the smallest that fills whole pages.

    Raises:
        ConfigError: what was asked for would not fill whole pages, so it could not be mapped.
    """
    step = max(arrays.aligned_rows(views * dim * 4) for dim in dims.values())
    if asked == 0:
        return max(64, step)
    if asked % step:
        raise ConfigError(
            f"--chunk is a multiple of {step} for {views} views of {dict(dims)}, found {asked}.\n"
            "Chunks fill whole pages of memory, so that training can map them."
        )
    return asked


def _record_crc32c(record: Mapping[str, Any]) -> str:
    """CRC-32C of the store's own record, without this entry, as canonical JSON."""
    rest = {key: value for key, value in record.items() if key != "crc32c"}
    return f"{arrays.crc32c(json.dumps(rest, sort_keys=True).encode('ascii')):08x}"


def _parse_shape(shape: Mapping[str, Any]) -> StoreSpec:
    spec = StoreSpec(**shape)
    numbers = (spec.samples, spec.views, spec.chunk, *spec.dims.values())
    if not spec.dims or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"no shape of a store: {dict(shape)}")
    return spec


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
        """
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
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
        if record.get("crc32c") != _record_crc32c(record):
            raise CorruptStoreError(
                "zarr.json", "its manyviews attributes are not what was written"
            )
        try:
            self.spec = _parse_shape(record["shape"])
            self.fingerprint: Fingerprint = dict(record["fingerprint"])
            self._samples_sha256 = record["samples_sha256"]
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CorruptStoreError("zarr.json", f"its manyviews attributes: {e!r}") from None
        for name in self.features:
            arrays.check_array_document(self.path, self.spec.feature(name))
        self.ledger = Ledger(self.path, self.spec.chunks, self.spec.chunk)

    @property
    def features(self) -> tuple[str, ...]:
        """The features it holds."""
        return tuple(self.spec.dims)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, in order.

        Raises:
            CorruptStoreError: the list is damaged.
        """
        data = durable.read_bytes(self.path / SAMPLES, self.path)
        if hashlib.sha256(data).hexdigest() != self._samples_sha256:
            raise CorruptStoreError(SAMPLES, "its checksum does not fit its content")
        samples = tuple(Sample(i, *json.loads(line)) for i, line in enumerate(data.splitlines()))
        if stems_sha256(s.stem for s in samples) != self.fingerprint.get("stems_sha256"):
            raise CorruptStoreError(SAMPLES, "its stems are not those the store was built from")
        return samples

    @property
    def stems(self) -> list[str]:
        """The samples' stems, in order."""
        return [s.stem for s in self.samples]

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return self.ledger.complete

    @property
    def bad_inputs(self) -> list[BadInput]:
        """The inputs that placeholders stand in for, in the order of the samples."""
        return [b for e in self.ledger.entries for s in e.samples for b in s.bad]

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
        spec = self.spec.feature(feature)
        if chunk not in self.ledger:
            raise CorruptStoreError(spec.file(chunk), "the chunk is not committed", chunk=chunk)
        return arrays.read_chunk(self.path, spec, chunk)

    def moments(self, feature: str) -> Moments:
        """Moments over all rows of a feature, merged in the order of the chunks.

        Raises:
            InputError: the store is not complete, so they would be moments of something else.
            CorruptStoreError: a chunk's moments are missing or damaged.
        """
        self.require_complete()
        spec = self.spec.moments(feature)
        parts = []
        for chunk in range(self.spec.chunks):
            mean, m2 = arrays.read_chunk(self.path, spec, chunk)[0]
            parts.append(Moments(len(self.spec.samples_of(chunk)) * self.spec.views, mean, m2))
        return merge(parts)

    def require_complete(self) -> None:
        """Raises InputError where chunks are missing."""
        if not self.complete:
            done, chunks = len(self.ledger), self.spec.chunks
            raise InputError(
                f"{self.path} is not complete: {done} of {chunks} chunks are there.\n"
                "Finish it with `build --resume`."
            )


class StoreWriter(FeatureStore):
    """A store opened for writing: holds its lock until it is closed. A context manager."""

    def __init__(self, path: Path, lock: durable.FileLock) -> None:
        super().__init__(path)
        self._lock = lock
        self.notices = self._recover()

    def _recover(self) -> list[str]:
        """Removes what a killed writer left; returns what there is to say about it."""
        swept = []
        for name in self.features:
            for spec in (self.spec.feature(name), self.spec.moments(name)):
                swept += durable.sweep_partials(self.path / spec.name)
        for folder in (f"{RECORDS}/moments", RECORDS, ""):
            swept += durable.sweep_partials(self.path / folder)
        notices = (
            [f"removed {len(swept)} unfinished files of an interrupted build"] if swept else []
        )
        if torn := self.ledger.recover():
            notices.append(f"dropped {torn} bytes of a torn last line of the ledger")
        return notices

    def commit_chunk(
        self,
        chunk: int,
        rows: Mapping[str, npt.NDArray[np.float32]],
        samples: Sequence[SampleRecord],
        changed: Mapping[str, str],
    ) -> None:
        """Writes one chunk of every feature; durable and complete once this returns.

        Args:
            chunk: its number.
            rows: per feature float32 ``[n, V, D]``.
            samples: the chunk's n samples, in order.
            changed: fingerprint fields that were allowed to differ.

        Raises:
            ValueError: shapes or samples do not fit the store.
            StorageError: a write failed; the chunk does not exist then.
        """
        files: dict[Path, arrays.EncodedChunk] = {}
        entry: dict[str, tuple[int, int]] = {}
        expected = self.spec.samples_of(chunk)
        if [s.index for s in samples] != list(expected):
            raise ValueError(f"chunk {chunk} holds samples {expected}, got {samples}")
        for name in self.features:
            feature, moments = self.spec.feature(name), self.spec.moments(name)
            if rows[name].shape != (len(expected), *feature.shape[1:]):
                raise ValueError(f"{name}: {rows[name].shape} does not fit chunk {chunk}")
            found = moments_of(rows[name].reshape(-1, feature.shape[2]))
            for spec, block in (
                (feature, rows[name]),
                (moments, np.stack([found.mean, found.m2])[None]),
            ):
                encoded = arrays.encode(spec, block)
                files[self.path / spec.file(chunk)] = encoded
                entry[spec.file(chunk)] = (encoded.size, encoded.crc)
        durable.replace_files((path, encoded.parts()) for path, encoded in files.items())
        self.ledger.commit(ChunkEntry(chunk, entry, samples, changed))

    def finish(self) -> None:
        """Brings the ledger into its final order once every chunk is committed."""
        if self.complete:
            self.ledger.sort()

    def close(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def take_lock(path: Path) -> durable.FileLock:
    """Locks the store at ``path``, whose ``records/runs`` folder is created if it is missing.

    Raises:
        StoreLockedError: another process is writing to it.
    """
    durable.make_folder(path / RUNS)
    return durable.FileLock(path / LOCK, path)


def state_of(path: Path) -> str:
    """What is at ``path``: ``absent``, ``store``, or ``unfinished`` (a creation that was killed).

    Raises:
        InputError: something else that must not be written into.
    """
    if not path.exists() and not path.is_symlink():
        return "absent"
    if not path.is_dir():
        raise InputError(f"{path} is not a folder. Choose another --store.")
    entries = {p.name for p in path.iterdir()}
    if not entries:
        return "absent"
    if "zarr.json" in entries and (path / RECORDS).is_dir():
        return "store"
    foreign = {e for e in entries if e.removesuffix(durable.PARTIAL) not in _ROOT_ENTRIES}
    foreign = {e for e in foreign - {RECORDS} if not e.startswith(".")}
    if not foreign and _is_started(path):
        return "unfinished"
    raise InputError(
        f"{path} is not empty and is not a feature store: it holds {min(foreign or entries)!r}.\n"
        "Choose another --store."
    )


def _is_started(path: Path) -> bool:
    """Whether a writer has locked ``path``, or was killed while it made the lock's folder."""
    if (path / LOCK).is_file():
        return True
    made = {str(p.relative_to(path)) for p in path.rglob("*")}
    return made <= {RECORDS, RUNS}


def create(
    path: Path,
    spec: StoreSpec,
    fingerprint: Fingerprint,
    samples: Sequence[Sample],
    lock: durable.FileLock,
) -> StoreWriter:
    """Creates an empty store at ``path``, in place of whatever of an earlier one is there.

    An earlier creation or deletion that was killed may have been of other features or samples;
    its files are erased first, or they would stay in the new store for ever.
    """
    erase(path)
    for name in spec.dims:
        for array, axes in (
            (spec.feature(name), ("sample", "view", "dim")),
            (spec.moments(name), ("chunk", "moment", "dim")),
        ):
            durable.make_folder(path / array.name)
            document = arrays.array_document(array, axes)
            durable.replace_file(path / array.name / "zarr.json", document)
    for group in (f"{RECORDS}/moments", RECORDS):
        durable.replace_file(path / group / "zarr.json", arrays.group_document({}))
    lines = [json.dumps([s.stem, s.image_name, s.text_name]).encode() + b"\n" for s in samples]
    listing = b"".join(lines)
    durable.replace_file(path / SAMPLES, listing)
    durable.replace_file(path / Ledger.FILE, b"")
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "shape": {**asdict(spec), "dims": dict(spec.dims)},
        "fingerprint": fingerprint,
        "samples_sha256": hashlib.sha256(listing).hexdigest(),
    }
    record["crc32c"] = _record_crc32c(record)
    durable.replace_file(path / "zarr.json", arrays.group_document({"manyviews": record}))
    return StoreWriter(path, lock)


def erase(path: Path) -> None:
    """Deletes the store at ``path`` but for its logs and lock, which the caller holds.

    The root's ``zarr.json`` goes first: a deletion that is killed leaves no store behind. Files
    that are not the store's are left alone.
    """
    durable.remove(path / "zarr.json")
    for folder, own in ((path, _ROOT_ENTRIES), (path / RECORDS, _RECORDS_ENTRIES)):
        for entry in sorted(folder.iterdir()):
            if entry.name.removesuffix(durable.PARTIAL) not in own:
                continue
            if entry.is_dir() and not entry.is_symlink():
                durable.remove_folder(entry)
            else:
                durable.remove(entry)


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
