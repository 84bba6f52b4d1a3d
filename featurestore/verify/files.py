"""The files of a store as ``verify`` reads them: what is damage, and what could not be read."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from featurestore.errors import StorageError
from featurestore.storage.codecs import frame_bytes
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.findings import Finding, Verification

_LARGEST_DOCUMENT_BYTES = 64 << 20
# Names of files that a message lists.
_LISTED = 3
_NO_DAMAGE = "This is not damage, and nothing was changed."


class StoreFiles:
    """The files of one store; what is damaged goes into ``report``.

    Attributes:
        known: the files that belong to the store, by name.
        at: the file that was read last.
    """

    def __init__(self, root: Path, report: Verification) -> None:
        self._root = self.at = root
        self._report = report
        self._unread: dict[str, OSError] = {}
        self.known: set[str] = set()

    def find(self, file: str, problem: str, chunk: int | None = None) -> None:
        """Reports damage."""
        self._report.findings.append(Finding(file, chunk, problem))

    def read(self, file: str, chunk: int | None = None) -> bytes | None:
        """A file's content; None where there is none.

        A file that is not there is damage. One that cannot be read is none: it is kept for
        :meth:`require_all_read`.
        """
        self.at = path = self._root / file
        try:
            return path.read_bytes()
        except OSError as e:
            if is_absent(e):
                self.find(file, e.strerror or str(e), chunk)
            else:
                self._unread[file] = e
            return None

    def object(self, file: str) -> dict[str, Any]:
        """A JSON object of the store; empty, with a finding, where it is none."""
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
            return (self._root / file).stat().st_size
        except OSError:
            return 0  # whoever reads it finds out why

    def unlisted(self, error: OSError) -> None:
        """Takes note of a folder that cannot be listed."""
        if not is_absent(error):
            self._unread[str(Path(error.filename).relative_to(self._root))] = error

    def require_all_read(self) -> None:
        """Raises StorageError where files could not be read."""
        if not self._unread:
            return
        names = list(self._unread)
        listed = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
        first = self._unread[names[0]]
        error = refusal(self._root / names[0], first)
        last = _NO_DAMAGE
        if first.errno == errno.EIO and "/c." in names[0]:
            last += " Should it stay so, remove the file: `verify --repair` then drops its chunk."
        error.args = (
            f"{self._root} could not be checked, because {len(names)} of its files cannot be read: "
            f"{listed}.\n{error}\n{last}",
        )
        raise error

    def without_memory(self, error: MemoryError) -> StorageError:
        """The error for a check that there is no memory for."""
        found = refusal(self.at, error)
        found.args = (f"{self._root} could not be checked.\n{found}\n{_NO_DAMAGE}",)
        return found


def decoded(body: bytes, size_bytes: int) -> bytes:
    """What a Zstandard frame of so many bytes holds; empty, which fits no checksum, if it is none.

    One that states another size is not decoded: the library would allocate that.
    """
    from numcodecs import zstd

    if frame_bytes(body) != size_bytes:
        return b""
    try:
        return bytes(zstd.decompress(body))
    except (RuntimeError, ValueError):
        return b""
