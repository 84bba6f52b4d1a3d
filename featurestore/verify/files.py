"""Reads the files of a store for ``verify``, separating damage from files that are unreadable."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from featurestore.errors import StorageError
from featurestore.storage.codecs import frame_bytes
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.findings import Finding, Verification

_LARGEST_DOCUMENT_BYTES = 64 << 20
# The largest number of file names in a message.
_LISTED = 3
_NO_DAMAGE = "This is not damage, and nothing was changed."


class StoreFiles:
    """The files of one store; damage is added to ``report``.

    Attributes:
        root: the store's folder.
        known: names of the files that belong to the store.
        at: the path of the file that was read last.
    """

    def __init__(self, root: Path, report: Verification) -> None:
        self.root = self.at = root
        self._report = report
        self._unread: dict[str, OSError] = {}
        self.known: set[str] = set()

    def find(self, file: str, problem: str, chunk: int | None = None) -> None:
        """Reports damage."""
        self._report.findings.append(Finding(file, chunk, problem))

    def read(self, file: str, chunk: int | None = None) -> bytes | None:
        """A file's content; None if it could not be read.

        A missing file is damage. An unreadable one is not; its error is kept for
        :meth:`require_all_read`.
        """
        data = self.read_if_present(file)
        if data is None and not self.is_unread(file):
            self.find(file, os.strerror(errno.ENOENT), chunk)
        return data

    def read_if_present(self, file: str) -> bytes | None:
        """A file's content; None if there is no such file, or if it could not be read."""
        self.at = path = self.root / file
        try:
            return path.read_bytes()
        except OSError as e:
            if not is_absent(e):
                self._unread[file] = e
            return None

    def is_unread(self, file: str) -> bool:
        """Whether a file exists, but could not be read."""
        return file in self._unread

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; empty if there is no such folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except OSError as e:
            self.unlisted(e)
            return []

    def object(self, file: str) -> dict[str, Any]:
        """A JSON object of the store; empty, with a finding, if the file is not one."""
        self.known.add(file)
        if self._size(file) > _LARGEST_DOCUMENT_BYTES:
            self.find(file, "too large for a Zarr document")
            return {}
        data = self.read(file)
        if data is None:
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as e:
            self.find(file, str(e))
            return {}
        if not isinstance(value, dict):
            self.find(file, "not a JSON object")
            return {}
        return value

    def _size(self, file: str) -> int:
        try:
            return (self.root / file).stat().st_size
        except OSError:
            return 0  # reading the file reports the error

    def unlisted(self, error: OSError) -> None:
        """Records the error of a folder that cannot be listed."""
        if not is_absent(error):
            self._unread[str(Path(error.filename).relative_to(self.root))] = error

    def require_all_read(self) -> None:
        """Raises StorageError if files could not be read."""
        if not self._unread:
            return
        names = list(self._unread)
        listed = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
        first = self._unread[names[0]]
        error = refusal(self.root / names[0], first)
        last = _NO_DAMAGE
        if first.errno == errno.EIO and "/c." in names[0]:
            last += " If this persists, remove the file: `verify --repair` then drops its chunk."
        error.args = (
            f"{self.root} could not be checked, because {len(names)} of its files cannot be read: "
            f"{listed}.\n{error}\n{last}",
        )
        raise error

    def without_memory(self, error: MemoryError) -> StorageError:
        """The error for a check that ran out of memory."""
        refused = refusal(self.at, error)
        refused.args = (f"{self.root} could not be checked.\n{refused}\n{_NO_DAMAGE}",)
        return refused


def decoded(body: bytes, size_bytes: int) -> bytes:
    """The content of a Zstandard frame; empty, which matches no checksum, if it is damaged.

    A frame that states another size than ``size_bytes`` is not decoded, because the library would
    allocate that size.
    """
    from numcodecs import zstd

    if frame_bytes(body) != size_bytes:
        return b""
    try:
        return bytes(zstd.decompress(body))
    except (RuntimeError, ValueError):
        return b""
