"""Records of the SHA-256 of files, to detect changes since they were written."""

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
    """The size in bytes and the hex SHA-256 of a file that was written."""

    bytes: int
    sha256: str


class HashingFile:
    """Passes on writes and hashes them, so that no file has to be read again for its record."""

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
        """Size and digest of the bytes written so far."""
        return FileFacts(self.size, self._digest.hexdigest())


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError: the file does not exist.
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        require_content(path, e)
        raise


def require_content(path: Path, error: Exception) -> None:
    """Raises StorageError for an error that does not mean that the file is absent or damaged."""
    if isinstance(error, OSError) and not is_absent(error):
        raise refusal(path, error) from error


def fits_checksum(record: Mapping[str, Any]) -> bool:
    """Whether a record matches its checksum; always True for records of the published scripts."""
    if "crc32c" not in record and "sha256" not in record:
        return True
    return bool(record.get("crc32c") == record_crc32c(record))


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record and checks it; those of the published scripts have no checksum.

    Raises:
        ValueError: the record is damaged.
        FileNotFoundError, NotADirectoryError, IsADirectoryError: the file does not exist.
        StorageError: the file cannot be read.
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
        problem = "its checksum does not match its content"
    if problem:
        raise ValueError(problem)
    return dict(record)
