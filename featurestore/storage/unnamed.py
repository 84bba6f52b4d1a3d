"""A store of unnamed files, for the trial of a build: it leaves nothing behind on disk.

Chunks are encoded, written and synced like those of any store, but to unnamed files that are
deleted once they are durable. Nothing can be read from this store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from featurestore.samples import SampleList
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import ChunkEntry, Ledger, format_entry
from featurestore.storage.shape import StoreSpec
from featurestore.storage.writer import StoreWriter
from featurestore.system import durable


class _UnnamedLedger(Ledger):
    """A ledger whose entries are kept in memory."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self._root = folder
        self._chunks = chunks
        self._entries: dict[int, ChunkEntry] = {}
        self._in_order = True

    def commit(self, entry: ChunkEntry) -> None:
        """Writes the entry's line to an unnamed file and keeps the entry in memory.

        Raises:
            StorageError: the line could not be written.
        """
        durable.write_unnamed(self._root, [[format_entry(entry) + b"\n"]])
        self._add(entry)

    def sort(self) -> None:
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

    def _write(self, files: Mapping[str, Iterable[bytes | memoryview]]) -> None:
        durable.write_unnamed(self.path, files.values())

    def close(self) -> None:
        """Does nothing: the store has no lock."""
