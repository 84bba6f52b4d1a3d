"""The file operations of a store that several processes may write at the same time.

Names are relative to the store's folder, with ``/`` between their parts. Every write is complete
and durable when the call returns, or has not happened.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from featurestore.errors import StorageError
from featurestore.system import durable, removal
from featurestore.system.contents import read_bytes
from featurestore.system.refusals import is_absent, is_folder, named_errors, refusal

Parts = Iterable[bytes | memoryview]


class Files(Protocol):
    """The operations that reading a store, committing to it and sealing it need."""

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        """Reads a file, or ``size`` bytes of it, beginning at ``start``.

        Raises:
            CorruptStoreError: the file is missing.
            StorageError: it cannot be read.
        """

    def sizes(self, folder: str) -> dict[str, int]:
        """The size in bytes of each file in a folder, by its name in the folder.

        Empty if there is no such folder.
        """

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; empty if there is no such folder."""

    def stamp(self, name: str) -> object:
        """A value that changes when a file is written, or a folder's entries; None if absent."""

    def put_all(self, contents: Mapping[str, Parts]) -> None:
        """Writes several files, replacing existing ones. Their folders exist."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless there is one of this name; creates its folder.

        Returns:
            Whether this call wrote it. False does not mean that another process did: the answer to
            a request that succeeded may be lost, and the request repeated. Compare the contents.
        """

    def replace(self, name: str, data: bytes, seen: bytes) -> None:
        """Replaces a file whose content is ``seen``.

        Raises:
            StorageError: its content is neither ``seen`` nor ``data``: another process wrote it.
        """

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, and their folder if it is left empty; absent files are ignored."""


class LocalFiles:
    """Files of a store in a folder of a local or network file system.

    Args:
        root: the store's folder.
        writer: the name of this process in names of temporary files, see :func:`writer_name`; empty
            if no other process writes to the store.
    """

    def __init__(self, root: Path, writer: str = "") -> None:
        self.root = root
        self._writer = writer

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        """See :meth:`Files.read`."""
        return read_bytes(self.root / name, self.root, start, size)

    def sizes(self, folder: str) -> dict[str, int]:
        """See :meth:`Files.sizes`."""
        with named_errors(self.root / folder):
            return {e.name: e.stat().st_size for e in self._entries(folder)}

    def names(self, folder: str) -> list[str]:
        """See :meth:`Files.names`."""
        return sorted(entry.name for entry in self._entries(folder))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                return [entry for entry in entries if entry.is_file()]
        except OSError as e:
            if is_absent(e):
                return []
            raise refusal(self.root / folder, e) from e

    def stamp(self, name: str) -> object:
        """See :meth:`Files.stamp`: inode, size and time."""
        try:
            status = (self.root / name).stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def put_all(self, contents: Mapping[str, Parts]) -> None:
        """See :meth:`Files.put_all`."""
        paths = ((self.root / name, parts) for name, parts in contents.items())
        durable.replace_files(paths, self._writer)

    def create(self, name: str, data: bytes) -> bool:
        """See :meth:`Files.create`."""
        path = self.root / name
        durable.make_folder(path.parent)
        return durable.create_file(path, data, self._writer)

    def replace(self, name: str, data: bytes, seen: bytes) -> None:
        """See :meth:`Files.replace`; processes that replace it exclude one another by a lock."""
        current = self.read(name)
        if current == data:
            return
        if current != seen:
            reason = "another process has written to it meanwhile"
            raise StorageError(self.root / name, reason, "Run the same command again.")
        durable.replace_file(self.root / name, data, self._writer)

    def remove(self, names: Iterable[str]) -> None:
        """See :meth:`Files.remove`."""
        folders = set()
        for name in names:
            path = self.root / name
            with named_errors(path):
                durable.hook("unlink", path, 0)
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in sorted(folders):
            if is_folder(folder):
                durable.sync_folder(folder)
                removal.remove_if_empty(folder)

    def append_line(self, name: str, line: bytes) -> None:
        """Appends ``line`` and a line feed; see :func:`durable.append_line`."""
        durable.append_line(self.root / name, line)

    def truncate(self, name: str, size: int) -> None:
        """Truncates a file to ``size`` bytes, durably."""
        durable.truncate(self.root / name, size)


def writer_name() -> str:
    """A name for this process that no other process has: ``<host>-<pid>-<random>``."""
    return f"{host_name()}-{os.getpid()}-{os.urandom(4).hex()}"


def host_name() -> str:
    """This host's name, with ``-`` for whatever is no letter, digit, ``_`` or ``-``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname())
