"""What the system refuses: which of its errors say something about content, and what helps.

A file that is missing, or that is a folder, is not what was committed: that is damage. Every other
error (no descriptor left, no memory, no permission, a disk or a server that does not answer) says
nothing about the content. It is a ``StorageError``, and nothing is ever dropped because of it.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import StorageError, StorageFullError

# The name leads to no file, whoever asks and however often.
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
# What CPython says where the system starts no thread; it has no error number.
_NO_THREAD = "can't start new thread"


def is_absent(error: OSError) -> bool:
    """Whether an error means that there is no such file."""
    return error.errno in _ABSENT


def refusal(path: Path, error: OSError | MemoryError, size_bytes: int = 0) -> StorageError:
    """The project's error for what the system refused to do with ``path``.

    Args:
        path: the file or folder.
        error: what was raised.
        size_bytes: the size of the write, where it was one.
    """
    if isinstance(error, MemoryError):
        return StorageError(path, "there is not enough memory", _MEMORY)
    number = error.errno or 0
    if number in _FULL:
        return StorageFullError(path, size_bytes, _FULL[number])
    advice = _ADVICE.get(number, "")
    if number == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = "as many as it likes" if hard == resource.RLIM_INFINITY else f"{hard:,}"
        advice = (
            f"This process may open {soft:,} files: raise that with `ulimit -n`, to {most} at most."
        )
    return StorageError(path, error.strerror or str(error), advice)


def explained(error: BaseException) -> StorageError | None:
    """The project's error for one that nothing turned into it; None where it says nothing known."""
    if isinstance(error, MemoryError):
        return refusal(Path("this machine"), error)
    if isinstance(error, OSError) and error.errno in {*_ADVICE, *_FULL, errno.EMFILE}:
        return refusal(Path(os.fsdecode(error.filename or "a file")), error)
    return None


@contextmanager
def named_errors(path: Path, size_bytes: int = 0) -> Iterator[None]:
    """Turns what the system refuses into the project's error, with the path it happened on."""
    try:
        yield
    except (OSError, MemoryError) as e:
        raise refusal(path, e, size_bytes) from e


def machine_error(error: BaseException | None) -> OSError | MemoryError | None:
    """What the system refused, where that is why a library failed; None where content is.

    Libraries wrap errors: those that an error was raised from, or while handling, are asked too.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        # Those without a number are a library's own, and speak of content (gzip.BadGzipFile).
        if isinstance(error, OSError) and error.errno is not None and not is_absent(error):
            return error
        if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
            return OSError(errno.EAGAIN, str(error))
        error = error.__cause__ or error.__context__
    return None


def status_of(path: Path) -> os.stat_result | None:
    """The status of what ``path`` leads to; None where it leads nowhere.

    Raises:
        StorageError: nobody can tell. (``Path.exists`` and its like say False then, or raise
            ``OSError``, as the version of Python has it.)
    """
    try:
        return path.stat()
    except OSError as e:
        if is_absent(e):
            return None
        raise refusal(path, e) from e


def is_file(path: Path) -> bool:
    """Whether there is a regular file; raises StorageError where nobody can tell."""
    found = status_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; raises StorageError where nobody can tell."""
    found = status_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def require_writable(folder: Path) -> None:
    """Raises StorageError where this user, or nobody, may create files in ``folder``."""
    if os.access(folder, os.W_OK | os.X_OK):
        return
    with named_errors(folder):
        fixed = os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if fixed else errno.EACCES
        raise OSError(number, os.strerror(number))
