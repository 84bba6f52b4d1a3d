"""Commit chunks to a store: alone, or beside other workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.records import SampleRecord
from featurestore.storage import arrays, extension
from featurestore.storage.commits import COMMITS
from featurestore.storage.entries import ChunkEntry
from featurestore.storage.files import LocalFiles, Parts, writer_name
from featurestore.storage.ledger import Ledger
from featurestore.storage.moments import moments_of
from featurestore.storage.shape import MOMENTS
from featurestore.storage.soundness import array_names, require_sound
from featurestore.storage.store import (
    EXTENSION,
    LOCK,
    RECORDS,
    RUNS,
    FeatureStore,
    is_store,
)
from featurestore.system import durable, removal
from featurestore.system.locks import FileLock
from featurestore.system.refusals import (
    is_folder,
)

_WAIT = "Wait for it to finish or stop it; an interrupted build is continued with --resume."


class StoreWriter(FeatureStore):
    """A store opened for writing, which holds its lock until it is closed; a context manager."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path)
        require_sound(self)
        self._lock = lock
        self.notices = self._recover()

    @classmethod
    def of(cls, store: FeatureStore, lock: FileLock) -> StoreWriter:
        """Makes an opened store writable; the caller holds ``lock``.

        Nothing is read or checked again: the caller has called :func:`require_sound` under the
        lock.
        """
        writer = cls.__new__(cls)
        writer.__dict__.update(store.__dict__)
        writer._lock = lock
        writer.notices = writer._recover()
        return writer

    def _recover(self) -> list[str]:
        """Removes the remains of a killed writer; returns notices about them."""
        swept = []
        if not self._lock.exists:  # other workers may be writing what looks like remains
            self._write_beside_others()
            self.finish()
            return []
        extension.sweep(self.path)
        folders = [*array_names(self), MOMENTS, RECORDS, ""]
        folders += [COMMITS] if is_folder(self.path / COMMITS) else []
        for folder in folders:
            swept += removal.sweep_partials(self.path / folder)
        notices = (
            [f"removed {len(swept)} unfinished files of an interrupted build"] if swept else []
        )
        if torn := self.ledger.recover():
            notices.append(f"dropped {torn} bytes of a torn last line of the ledger")
        self.ledger.seal()
        if is_folder(self.path / COMMITS):
            removal.remove_if_empty(self.path / COMMITS)
        return notices

    def _write_beside_others(self) -> None:
        """Puts the name of this process in those of its temporary files."""
        self.files = LocalFiles(self.path, writer_name())
        self.ledger = Ledger(self.files, self.spec.chunks, self.spec.chunk)

    def commit_chunk(
        self,
        chunk: int,
        rows: Mapping[str, npt.NDArray[np.float32]],
        samples: Sequence[SampleRecord],
        changed: Mapping[str, str],
    ) -> None:
        """Writes one chunk of every feature; durable and complete once this returns.

        Args:
            chunk: the chunk's number.
            rows: float32 ``[n, V, D]`` by feature.
            samples: the records of the chunk's n samples, in order.
            changed: fingerprint fields that were allowed to differ, as ``stored -> new``.

        Raises:
            ValueError: shapes or samples do not fit the store.
            StorageError: a write failed; the chunk is then not committed.
        """
        files = self._encoded(chunk, rows, samples)
        sizes = {file: (encoded.size, encoded.crc) for file, encoded in files.items()}
        with self._locked():
            contents = {file: list(encoded.parts()) for file, encoded in files.items()}
            self._commit(ChunkEntry(chunk, sizes, samples, changed), contents)

    def _commit(self, entry: ChunkEntry, contents: Mapping[str, Parts]) -> None:
        """Writes a chunk's files and commits it."""
        self.files.put_all(contents)
        self.ledger.commit(entry)

    def _locked(self) -> AbstractContextManager[None]:
        """Keeps the store's lock until a chunk is written, even if the build ends meanwhile."""
        return self._lock.kept()

    def _encoded(
        self,
        chunk: int,
        rows: Mapping[str, npt.NDArray[np.float32]],
        samples: Sequence[SampleRecord],
    ) -> dict[str, arrays.EncodedChunk]:
        """A chunk's files by name; raises ValueError if shapes or samples do not fit."""
        files: dict[str, arrays.EncodedChunk] = {}
        expected = self.spec.samples_of(chunk)
        if [s.index for s in samples] != list(expected):
            raise ValueError(f"chunk {chunk} holds samples {expected}, got {samples}")
        for name in self.features:
            feature, moments = self.spec.feature(name), self.spec.moments(name)
            if rows[name].shape != (len(expected), *feature.shape[1:]):
                raise ValueError(f"{name}: {rows[name].shape} does not fit chunk {chunk}")
            present = self.spec.present(name, samples)
            computed = moments_of(rows[name][present].reshape(-1, feature.shape[2]))
            for spec, block in (
                (feature, rows[name]),
                (moments, np.stack([computed.mean, computed.m2])[None]),
            ):
                files[spec.file(chunk)] = arrays.encode(spec, block)
        return files

    def finish(self) -> None:
        """Sorts the ledger if every chunk is committed."""
        if self.complete:
            self.ledger.seal()

    def refresh(self) -> None:
        """Reads what other workers have committed; a writer that is alone knows everything."""

    def is_only(self) -> bool:
        """Whether no other worker is known to run that may commit chunks."""
        return True

    def alone(self) -> StoreWriter | None:
        """This store for a writer that no other one writes beside; None if others do."""
        return self

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SharedWriter(StoreWriter):
    """A store that several workers write to at the same time; they share its lock.

    Chunks are committed by records. The remains of killed workers are not removed, because they
    look like the files that living ones are writing.
    """

    @classmethod
    def of(cls, store: FeatureStore, lock: FileLock) -> SharedWriter:
        """Makes an opened store writable for a worker that holds a shared lock."""
        writer = cls.__new__(cls)
        writer.__dict__.update(store.__dict__)
        writer._write_beside_others()
        writer._lock = lock
        writer.notices = []
        return writer

    def _commit(self, entry: ChunkEntry, contents: Mapping[str, Parts]) -> None:
        # The files of a committed chunk are not written again, not even with the same bytes:
        # readers may have mapped them.
        if not self.ledger.is_recorded(entry):
            self.files.put_all(contents)
            self.ledger.record(entry)

    def refresh(self) -> None:
        """Reads what other workers have committed."""
        self.ledger.refresh()

    def is_only(self) -> bool:
        """See :meth:`StoreWriter.is_only` and :meth:`FileLock.is_only`."""
        return self._lock.is_only()

    def alone(self) -> StoreWriter | None:
        """Gives up the shared lock; the store for its only writer, if no other worker is left."""
        if not self._lock.take_alone() or not is_store(self.path):
            return None  # an extension that another worker has put in place is no store any more
        return StoreWriter.of(FeatureStore(self.path), self._lock)

    def finish(self) -> None:
        """Raises TypeError: only the result of :meth:`alone` can be finished."""
        raise TypeError("a store that workers share is sealed by one of them alone")


def open_alone(path: Path, lock: FileLock) -> tuple[StoreWriter, StoreWriter | None]:
    """Opens a store for its only writer, after other writers, which may have been killed.

    An extension that is complete is put in place first.

    Args:
        path: the store's folder.
        lock: its lock, which the caller holds alone.

    Returns:
        The store, and its unfinished extension; None if it has none.

    Raises:
        CorruptStoreError: one of them is damaged.
        StorageError: a write failed.
    """
    if extension.is_pending(path):
        extension.put_in_place(path)
    store = StoreWriter(path, lock)
    if not extension.is_unfinished(path):
        return store, None
    with extension.naming():
        return store, StoreWriter(path / EXTENSION, lock)


def take_lock(path: Path, *, worker: bool = False, shared: bool = False) -> FileLock:
    """Locks the store at ``path``; creates its folder ``records/runs`` if it is missing.

    Args:
        path: the store's folder.
        worker: whether a worker takes it, which needs no lock where the file system has none.
        shared: whether other workers may hold it too.

    Raises:
        StoreLockedError: another process is writing to it.
    """
    durable.make_folder(path / RUNS)
    required = not worker
    return FileLock(
        path / LOCK, path, shared=shared, worker=worker, required=required, advice=_WAIT
    )
