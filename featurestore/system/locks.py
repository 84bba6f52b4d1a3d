"""The store's lock and its holder; on some file systems, the holder is unknown.

The kernel keeps ``flock`` locks and releases them when the holder dies, even by kill -9. On file
systems without locks a build is refused, because nothing else prevents two builds from writing the
same store; reading a store needs no lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from featurestore.errors import StorageError, StoreLockedError
from featurestore.system import durable
from featurestore.system.durable import FILE_MODE, NO_LOCKS, lock_now
from featurestore.system.refusals import is_absent, named_errors, refusal, status_of

# Attempts and pause in seconds, because ``lock_holder`` takes the lock for an instant.
_LOOKS, _LOOK_S = 5, 0.01
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_ELSEWHERE = (
    "Write the store on another file system, and copy it here when it is complete: reading it "
    "needs no locks."
)


class Holder(NamedTuple):
    """The process that holds a lock.

    Attributes:
        pid: process id, or None if the lock file does not contain it.
        host: host name, or None if the lock file does not contain it.
    """

    pid: int | None
    host: str | None


class Unknown(Enum):
    """The type of ``UNKNOWN``."""

    HOLDER = "unknown"


# The result of ``lock_holder`` if it cannot find out whether a process holds the lock.
UNKNOWN: Final = Unknown.HOLDER


class FileLock:
    """An exclusive advisory lock (``flock``), released when its holder dies, even by kill -9.

    The file's content names the holder for messages only; the kernel keeps the lock itself.
    """

    def __init__(
        self, path: Path, subject: Path, *, required: bool = True, advice: str = ""
    ) -> None:
        """Takes the lock at ``path`` for ``subject``, without waiting.

        Args:
            path: the file to lock; created if it is missing.
            subject: the locked file or store, for messages.
            required: whether to raise an error if the file system has no locks.
            advice: the advice of the error message if another process holds the lock.

        Raises:
            StoreLockedError: another process holds the lock.
            StorageError: the file cannot be opened, or the file system has no locks.
        """
        self._keeping = threading.Lock()
        with named_errors(path):
            durable.hook("open", path, 0)
            is_new = status_of(path) is None
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            _take(self._fd)
        except OSError as e:
            if required or e.errno not in NO_LOCKS:
                holder = _read_holder(self._fd)
                os.close(self._fd)
                if e.errno in _HELD:
                    raise StoreLockedError(subject, holder.pid, holder.host, advice) from None
                raise _without_locks(path, e) from e
        try:
            with named_errors(path):
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, _own_name(), 0)
            if is_new:
                # The lock file tells the next build that this is an interrupted creation of a
                # store, and not an unknown folder.
                durable.sync_folder(path.parent)
        except BaseException:
            self.release()
            raise

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the lock during the block: ``release`` in another thread waits for its end."""
        with self._keeping:
            yield

    def release(self) -> None:
        """Waits until no thread is in a ``kept`` block, then releases the lock if it is held."""
        with self._keeping:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def require_locks(folder: Path) -> None:
    """Refuses a folder whose file system has no locks, before anything is created in it.

    Raises:
        StorageError: the file system has no locks.
    """
    with named_errors(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock_now(fd, shared=True)
    except OSError as e:
        # Some file systems lock files but not folders; ``FileLock`` decides for the file itself.
        if e.errno in NO_LOCKS:
            raise _without_locks(folder, e) from e
    finally:
        os.close(fd)


def lock_holder(path: Path) -> Holder | Unknown | None:
    """The holder of the lock at ``path``, None if it is free, ``UNKNOWN`` if that is unknown."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as e:
        if is_absent(e):
            return None
        if e.errno == errno.EACCES:
            return UNKNOWN
        raise refusal(path, e) from e
    try:
        lock_now(fd, shared=True)
    except OSError as e:
        return _read_holder(fd) if e.errno in _HELD else UNKNOWN
    finally:
        os.close(fd)
    return None


def _take(fd: int) -> None:
    """Takes a lock, waiting only for the instant in which :func:`lock_holder` may hold it.

    Raises:
        OSError: another process holds the lock, or the file system has no locks.
    """
    for _ in range(_LOOKS):
        try:
            lock_now(fd)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return
    lock_now(fd)


def _without_locks(path: Path, error: OSError) -> StorageError:
    if error.errno not in NO_LOCKS:
        return refusal(path, error)
    reason = f"its file system has no file locks, which keep two writers apart ({error.strerror})"
    return StorageError(path, reason, _ELSEWHERE)


def _own_name() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()


def _read_holder(fd: int) -> Holder:
    try:
        content: Any = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict):
        return Holder(None, None)
    return Holder(content.get("pid"), content.get("host"))
