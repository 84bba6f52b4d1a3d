"""Reads files of a store: a missing file is damage, every other failure is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from featurestore.errors import CorruptStoreError, StorageError
from featurestore.system.refusals import is_absent, named_errors, refusal


def read_bytes(path: Path, root: Path, start: int = 0, size: int = -1) -> bytes:
    """Reads a file of the store at ``root``, or ``size`` bytes of it, beginning at ``start``.

    Raises:
        CorruptStoreError: the file is missing.
        StorageError: the file cannot be read, or a folder has its name.
    """
    try:
        with named_errors(path), path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except StorageError as e:
        cause = e.__cause__
        if isinstance(cause, OSError) and is_absent(cause) and cause.errno != errno.EISDIR:
            raise not_there(str(path.relative_to(root)), cause) from None
        raise


def size_of(root: Path, file: str, chunk: int) -> int:
    """Size in bytes of a chunk's file in the store at ``root``.

    Raises:
        CorruptStoreError: the file is missing.
        StorageError: the file's size cannot be read.
    """
    try:
        return os.stat(f"{root}/{file}").st_size  # noqa: PTH116  a Path for each takes longer
    except OSError as e:
        if is_absent(e):
            raise not_there(file, e, chunk) from None
        raise refusal(root / file, e) from e


def not_there(file: str, error: OSError, chunk: int | None = None) -> CorruptStoreError:
    """The error for a file of the store that is missing or is not a file."""
    missing = error.errno == errno.ENOENT
    problem = "the file is missing" if missing else f"no file: {error.strerror}"
    return CorruptStoreError(file, problem, chunk=chunk)
