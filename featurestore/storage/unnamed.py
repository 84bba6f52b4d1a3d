"""A store of unnamed files, for the trial of a build: it leaves nothing behind on disk.

Chunks are encoded, written and synced like those of any store, but to unnamed files that are
deleted once they are durable. Nothing can be read from this store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from featurestore.samples import SampleList
from featurestore.storage.entries import ChunkEntry, format_entry
from featurestore.storage.files import LocalFiles, Parts
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.shape import StoreSpec
from featurestore.storage.writer import StoreWriter
from featurestore.system import durable
from featurestore.system.refusals import named_errors


class _UnnamedLedger(Ledger):
    """A ledger whose entries are kept in memory."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self._files = LocalFiles(folder)
        self._chunks = chunks
        self._entries: dict[int, ChunkEntry] = {}
        self._in_order = True

    def commit(self, entry: ChunkEntry) -> None:
        """Writes the entry's line to an unnamed file and keeps the entry in memory.

        Raises:
            StorageError: the line could not be written.
        """
        _write_unnamed(self._local.root, [[format_entry(entry) + b"\n"]])
        self._add(entry)

    def seal(self) -> None:
        """Does nothing: there is no file with lines to sort."""


class UnnamedStore(StoreWriter):
    """A store for writing only, on the file system of a given folder."""

    def __init__(
        self, folder: Path, spec: StoreSpec, fingerprint: Fingerprint, samples: SampleList
    ) -> None:
        """Creates no files; ``folder`` determines the file system of the unnamed files."""
        self.path = folder
        self.spec = spec
        self.fingerprint = fingerprint
        self.__dict__["samples"] = samples  # the cache of the property ``samples``
        self.ledger = _UnnamedLedger(folder, spec.chunks)
        self.notices = []

    def _locked(self) -> AbstractContextManager[None]:
        return nullcontext()  # no other process can open this store

    def _commit(self, entry: ChunkEntry, contents: Mapping[str, Parts]) -> None:
        _write_unnamed(self.path, contents.values())
        self.ledger.commit(entry)

    def close(self) -> None:
        """Does nothing: the store has no lock."""


def _write_unnamed(folder: Path, contents: Iterable[Iterable[bytes | memoryview]]) -> None:
    """Writes several files as ``durable.replace_files`` does, but without names.

    The files are deleted when this returns, and also if the process is killed: the function serves
    to measure the time of writing. If the file system does not support unnamed files, each has a
    name for an instant.

    Raises:
        StorageFullError: no space or quota left.
        StorageError: any other failure of the file system.
    """
    with ExitStack() as files:
        for parts in contents:
            with named_errors(folder):
                durable.hook("open", folder, 0)
                file = files.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
            for part in parts:
                view = memoryview(part).cast("B")
                with named_errors(folder, len(view)):
                    durable.write_all(file.fileno(), view, folder)
            with named_errors(folder):
                durable.fsync(file.fileno(), folder)
    durable.sync_folder(folder)
