"""Read whole files with a cap on their size, and the names that a folder lists.

Names are used as values only; no name is ever parsed as a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import BadSampleError
from featurestore.records import Sample
from featurestore.system.refusals import refusal

# Errors of the machine, not of the file: they never lead to a placeholder.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Reasons for which ``read_capped`` refuses a file.
UNREADABLE = ("missing", "not-a-file", "too-large", "unreadable")
# Reasons for inputs that ended the producers which processed them.
ENDED = ("killed", "timeout")

MAX_IMAGE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 16 * 2**20

_READ_BYTES = 2**20
_MISSING = (-1, -1)


def name_bytes(name: str) -> bytes:
    """The bytes of a file's name, as the file system has them, in every locale."""
    return name.encode("utf-8", "surrogateescape")


def utf8(name: str) -> str:
    """A listed file name, decoded as UTF-8 in every locale.

    In the locale ``C`` Python may decode file names as ASCII: the same folder would have other
    names, in another order, and so another store.
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def native(name: str) -> str:
    """The inverse of ``utf8``: the name in the encoding of this process's locale."""
    return os.fsdecode(name_bytes(name))


def image_path(data_dir: Path, sample: Sample) -> Path:
    """Path of the sample's poster; names that a folder lists contain no slash."""
    return data_dir / native(str(sample.image_name))


def text_path(data_dir: Path, sample: Sample) -> Path:
    """Path of the sample's synopsis; names that a folder lists contain no slash."""
    return data_dir / native(str(sample.text_name))


def stat_file(path: bytes | int) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file; (-1, -1) if it cannot be found.

    Args:
        path: path of the file, or an open descriptor.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each of 50,000 files takes longer
    except OSError:
        return _MISSING
    # From the year 2262 on nanoseconds do not fit into int64; distinct times must stay distinct.
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63


def read_capped(path: Path, cap_bytes: int) -> bytes:
    """Read a whole file of at most ``cap_bytes`` bytes.

    Args:
        path: path of the file; symlinks are followed, because ``scan`` has checked their targets.
        cap_bytes: maximum size in bytes; at most one more byte is ever read.

    Returns:
        The file's bytes.

    Raises:
        BadSampleError: ``missing``, ``not-a-file``, ``too-large`` or ``unreadable``.
        StorageError: this process or machine has no memory or descriptor left, which is no fault
            of the file.
    """
    try:
        # O_NONBLOCK: open() must return even if a FIFO replaced the file since the scan.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return _read_descriptor(descriptor, cap_bytes)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise BadSampleError("missing", "there is no such file") from None
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise refusal(path, error) from error
        # Opening a socket fails with ENXIO, before fstat() could tell its kind.
        reason = "not-a-file" if error.errno == errno.ENXIO else "unreadable"
        raise BadSampleError(reason, error.strerror or str(error)) from error


def _read_descriptor(descriptor: int, cap_bytes: int) -> bytes:
    """Reads an open file; see :func:`read_capped`."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise BadSampleError("not-a-file", "a directory, FIFO, socket or device")
    if status.st_size > cap_bytes:
        raise BadSampleError("too-large", f"{status.st_size:,} bytes; at most {cap_bytes:,}")
    data = b"".join(_read_blocks(descriptor, cap_bytes + 1))
    if len(data) > cap_bytes:  # it grew since fstat()
        raise BadSampleError("too-large", f"more than {cap_bytes:,} bytes")
    return data


def _read_blocks(descriptor: int, limit_bytes: int) -> Iterator[bytes]:
    """Blocks from the descriptor until its end or until ``limit_bytes`` are read."""
    left = limit_bytes
    while left > 0 and (block := os.read(descriptor, min(left, _READ_BYTES))):
        left -= len(block)
        yield block
