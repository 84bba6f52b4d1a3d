"""The only module that locks files: ``flock``, which the kernel releases when a process ends."""

from __future__ import annotations

import errno
import os

try:
    import fcntl
except ImportError:  # Windows has no such locks, so that nothing is written there
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
# Errors of ``flock`` where the kernel, the file system or its lock server does not support locks.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def lock_now(fd: int, *, shared: bool = False) -> None:
    """Locks a file or folder without waiting.

    Raises:
        OSError: another process holds the lock, or the system or the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def unlock(fd: int) -> None:
    """Releases the lock of a file."""
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock_where_possible(fd: int) -> None:
    """Locks a file without waiting; does nothing if the file system has no locks."""
    try:
        lock_now(fd)
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
