"""Files beside a record of their SHA-256: whether each is still what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.storage.store import record_crc32c
from featurestore.system.durable import PartialFile
from featurestore.system.refusals import is_absent, refusal


class FileFacts(NamedTuple):
    """Size and SHA-256, in hex, of a file that was written."""

    bytes: int
    sha256: str


class HashingFile:
    """Passes writes on and digests them, so that no file is read again for its record."""

    def __init__(self, file: PartialFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Appends ``data``; see :meth:`PartialFile.write`."""
        self._file.write(data)
        self._digest.update(data)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    @property
    def facts(self) -> FileFacts:
        """Size and digest of what was written until now."""
        return FileFacts(self.size, self._digest.hexdigest())


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError: there is no such file.
        StorageError: it cannot be read, so nobody can tell.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        require_content(path, e)
        raise


def require_content(path: Path, error: Exception) -> None:
    """Raises StorageError where a file could not be read, which says nothing about its content."""
    if isinstance(error, OSError) and not is_absent(error):
        raise refusal(path, error) from error


def fits_checksum(record: Mapping[str, Any]) -> bool:
    """Whether a record is what was written; one of the published scripts, without digests, is."""
    if "crc32c" not in record and "sha256" not in record:
        return True
    return bool(record.get("crc32c") == record_crc32c(record))


def read_record(path: Path) -> dict[str, Any]:
    """A record as it was written; one of the published scripts has neither digests nor checksum.

    Raises:
        ValueError: it is not what was written.
        FileNotFoundError, NotADirectoryError, IsADirectoryError: there is none.
        StorageError: it cannot be read, so nobody can tell.
    """
    try:
        record = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OSError as e:
        require_content(path, e)
        raise
    problem = ""
    if not isinstance(record, dict):
        problem = f"it must hold an object; found a {type(record).__name__}"
    elif not fits_checksum(record):
        problem = "its checksum does not fit its content"
    if problem:
        raise ValueError(problem)
    return dict(record)
