"""Errors of the operating system: which ones indicate damage, and what a user can do about them.

A missing file, or a folder in place of a file, is damage to the store. Every other error (no free
descriptor, no memory, no permission, a disk or a server that does not answer) says nothing about
the content of a file. It becomes a ``StorageError``, and nothing is ever dropped because of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import StorageError, StorageFullError

# Errors that mean that no file has this name, for every user and at every attempt.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the disk quota is reached"}

_MOUNT = "Its file system does not answer: mount it again or wait, then run the same command again."
_MEMORY = (
    "Free some memory, or raise its limit: the job's, `ulimit -v`, or for mapped files "
    "`sysctl vm.max_map_count`."
)
_PERMISSION = "Give this user the permission, then run the same command again."
_ADVICE = {
    errno.EISDIR: "A folder has its name: move it away, or choose another name.",
    errno.EFBIG: (
        "No file may be so large here: raise the limit of this process with `ulimit -f`, or choose "
        "another file system."
    ),
    errno.ELOOP: "Its symbolic links lead in a circle: remove them.",
    errno.ENFILE: "No process of this machine can open another file: raise `sysctl fs.file-max`.",
    errno.ENOMEM: _MEMORY,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "Mount the file system for writing, or choose another folder.",
    errno.EIO: "Its disk, or the connection to it, failed: `dmesg` may say more.",
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ETIMEDOUT: _MOUNT,
    errno.EHOSTDOWN: _MOUNT,
    errno.ENODEV: _MOUNT,
}
# CPython's message if the system cannot start a thread; the error has no number.
_NO_THREAD = "can't start new thread"


def is_absent(error: OSError) -> bool:
    """Whether an error means that the file does not exist."""
    return error.errno in _ABSENT


def refusal(path: Path, error: OSError | MemoryError, size_bytes: int = 0) -> StorageError:
    """The project's error for an operation on ``path`` that the system refused.

    Args:
        path: the file or folder.
        error: the exception that was raised.
        size_bytes: the size of the write in bytes, if the operation was a write.
    """
    if isinstance(error, MemoryError):
        return StorageError(path, "there is not enough memory", _MEMORY)
    number = error.errno or 0
    if number in _FULL:
        return StorageFullError(path, size_bytes, _FULL[number])
    advice = _ADVICE.get(number, "")
    if number == errno.EMFILE:
        advice = _more_files()
    return StorageError(path, error.strerror or str(error), advice)


def _more_files() -> str:
    try:
        import resource
    except ImportError:  # Windows, where `ulimit` does not exist either
        return "Close files that this process has opened."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "as many as it likes" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    return f"This process may open {soft:,} files: raise that with `ulimit -n`, to {most} at most."


def explained(error: BaseException) -> StorageError | None:
    """The project's error for an unconverted system error; None if the error is not a known one."""
    if isinstance(error, MemoryError):
        return refusal(Path("this machine"), error)
    if isinstance(error, OSError) and error.errno in {*_ADVICE, *_FULL, errno.EMFILE}:
        return refusal(Path(os.fsdecode(error.filename or "a file")), error)
    return None


@contextmanager
def named_errors(path: Path, size_bytes: int = 0) -> Iterator[None]:
    """Converts an OSError or MemoryError in the block into a project error that names ``path``.

    Args:
        path: the file or folder that the block uses.
        size_bytes: the memory that the block allocates, for the message; 0 if unknown.
    """
    try:
        yield
    except (OSError, MemoryError) as e:
        raise refusal(path, e, size_bytes) from e


def machine_error(error: BaseException | None) -> OSError | MemoryError | None:
    """The system error that made a library fail; None if the content of a file was the cause.

    Libraries wrap errors, so the causes and contexts of ``error`` are examined too.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        # Libraries raise OSError without a number for bad content (gzip.BadGzipFile).
        if isinstance(error, OSError) and error.errno is not None and not is_absent(error):
            return error
        if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
            return OSError(errno.EAGAIN, str(error))
        error = error.__cause__ or error.__context__
    return None


def status_of(path: Path) -> os.stat_result | None:
    """The status of the file that ``path`` leads to; None if there is none.

    Raises:
        StorageError: the system refused the query. (``Path.exists`` and similar methods then return
            False or raise ``OSError``, depending on the version of Python.)
    """
    try:
        return path.stat()
    except OSError as e:
        if is_absent(e):
            return None
        raise refusal(path, e) from e


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file; raises StorageError if that cannot be determined."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; raises StorageError if that cannot be determined."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def require_writable(folder: Path) -> None:
    """Raises StorageError if this user may not create files in ``folder``."""
    if os.access(folder, os.W_OK | os.X_OK):
        return
    with named_errors(folder):
        fixed = os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if fixed else errno.EACCES
        raise OSError(number, os.strerror(number))
