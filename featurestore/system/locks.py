"""The store's lock, and who holds it: held, free, or nobody can tell.

``flock`` belongs to the kernel and dies with its holder, kill -9 included. Some file systems have
none. There a build is refused, because nothing else keeps two of them apart; reading a store needs
no lock.
"""

from __future__ import annotations

import errno
import fcntl
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
from featurestore.system.durable import FILE_MODE, NO_LOCKS
from featurestore.system.refusals import is_absent, named_errors, refusal, status_of

# How long to wait for those who only look at who holds a lock.
_LOOKS, _LOOK_S = 5, 0.01
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_ELSEWHERE = (
    "Write the store on another file system, and copy it here when it is complete: reading it "
    "needs no locks."
)


class Holder(NamedTuple):
    """The process that holds a lock.

    Attributes:
        pid: its process id, or None where it left none.
        host: its host name, or None where it left none.
    """

    pid: int | None
    host: str | None


class Unknown(Enum):
    """The type of ``UNKNOWN``."""

    HOLDER = "unknown"


# Whether anybody holds a lock cannot be found out.
UNKNOWN: Final = Unknown.HOLDER


class FileLock:
    """An exclusive advisory lock that dies with its holder, kill -9 included (``flock``).

    The file's content names the holder for messages only; the lock itself is the kernel's.
    """

    def __init__(
        self, path: Path, subject: Path, *, required: bool = True, advice: str = ""
    ) -> None:
        """Takes the lock at ``path`` for ``subject``, without waiting.

        Args:
            path: the file that is locked; created if it is missing.
            subject: what the lock is for, for messages.
            required: whether it is an error that the file system has no locks.
            advice: what to do where another process holds it.

        Raises:
            StoreLockedError: another process holds it.
            StorageError: it cannot be opened, or the file system has no locks.
        """
        self._keeping = threading.Lock()
        with named_errors(path):
            durable.hook("open", path, 0)
            is_new = status_of(path) is None
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
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
                # By it the next start tells a creation that was cut short from a foreign folder.
                durable.sync_folder(path.parent)
        except BaseException:
            self.release()
            raise

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the lock in the block, whoever releases it meanwhile."""
        with self._keeping:
            yield

    def release(self) -> None:
        """Gives the lock back, once nothing keeps it; calling it again does nothing."""
        with self._keeping:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def require_locks(folder: Path) -> None:
    """Refuses a folder whose file system has no locks, before anything is created in it.

    Raises:
        StorageError: it has none.
    """
    with named_errors(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        # Folders cannot be locked everywhere; the file itself has the last word.
        if e.errno in NO_LOCKS:
            raise _without_locks(folder, e) from e
    finally:
        os.close(fd)


def lock_holder(path: Path) -> Holder | Unknown | None:
    """Who holds the lock at ``path``; None where nobody does, ``UNKNOWN`` where nobody can tell."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        if is_absent(e):
            return None
        if e.errno == errno.EACCES:
            return UNKNOWN
        raise refusal(path, e) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        return _read_holder(fd) if e.errno in _HELD else UNKNOWN
    finally:
        os.close(fd)
    return None


def _take(fd: int) -> None:
    """Takes a lock at once, or after the instant in which :func:`lock_holder` looks at it.

    Raises:
        OSError: somebody holds it, or there are no locks.
    """
    for _ in range(_LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _without_locks(path: Path, error: OSError) -> StorageError:
    if error.errno not in NO_LOCKS:
        return refusal(path, error)
    reason = f"its file system has no file locks, which keep two writers apart ({error.strerror})"
    return StorageError(path, reason, _ELSEWHERE)


def _own_name() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()


def _read_holder(fd: int) -> Holder:
    try:
        found: Any = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict):
        return Holder(None, None)
    return Holder(found.get("pid"), found.get("host"))
