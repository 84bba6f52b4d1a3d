"""A store without a name, for the trial of a build: nothing of it outlives its process.

Chunks are encoded, written and synced as those of any store, into files that have no name and are
gone once they are durable. Nothing can be read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from featurestore.samples import SampleList
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import ChunkEntry, Ledger, format_entry
from featurestore.storage.store import StoreSpec
from featurestore.storage.writer import StoreWriter
from featurestore.system import durable


class _UnnamedLedger(Ledger):
    """Committed chunks, kept in memory."""

    def __init__(self, folder: Path, chunks: int) -> None:
        self._root = folder
        self._chunks = chunks
        self._entries: dict[int, ChunkEntry] = {}
        self._in_order = True

    def commit(self, entry: ChunkEntry) -> None:
        """Writes the entry's line, and keeps the entry.

        Raises:
            StorageError: the line could not be written.
        """
        durable.write_unnamed(self._root, [[format_entry(entry) + b"\n"]])
        self._add(entry)

    def sort(self) -> None:
        """Does nothing: there is no file whose lines have an order."""


class UnnamedStore(StoreWriter):
    """A store that a build can write to, on the file system of a folder."""

    def __init__(
        self, folder: Path, spec: StoreSpec, fingerprint: Fingerprint, samples: SampleList
    ) -> None:
        """Creates nothing: ``folder`` is where its files will have been."""
        self.path = folder
        self.spec = spec
        self.fingerprint = fingerprint
        self.__dict__["samples"] = samples  # cached there once they are read
        self.ledger = _UnnamedLedger(folder, spec.chunks)
        self.notices = []

    def _locked(self) -> AbstractContextManager[None]:
        return nullcontext()  # nobody else can have it

    def _write(self, files: Mapping[str, Iterable[bytes | memoryview]]) -> None:
        durable.write_unnamed(self.path, files.values())

    def close(self) -> None:
        """Does nothing: nobody else can have it."""
