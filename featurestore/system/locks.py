"""The store's lock and its holders; on some file systems, the holders are unknown.

The kernel keeps ``flock`` locks and releases them when the holder dies, even by kill -9. Workers of
one build share the lock; everything else that writes holds it alone. On file systems without locks
a build by one process is refused, because nothing else prevents two of them from writing the same
store; reading a store needs no lock, and neither do workers.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from featurestore.errors import StorageError, StoreLockedError
from featurestore.system import durable
from featurestore.system.durable import FILE_MODE, is_open_file
from featurestore.system.flock import NO_LOCKS, lock_now, unlock
from featurestore.system.refusals import is_absent, named_errors, refusal, status_of

# Attempts and pause in seconds, because ``lock_holders`` takes the lock for an instant.
_LOOKS, _LOOK_S = 5, 0.01
_CONTENT_BYTES = 1 << 20
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_ELSEWHERE = (
    "A worker needs none: `build --resume --worker 0/1` writes the store here. Or write it on "
    "another file system, and copy it here when it is complete: reading it needs no locks."
)


class Holder(NamedTuple):
    """A process that holds a lock.

    Attributes:
        pid: process id, or None if the lock file does not contain it.
        host: host name, or None if the lock file does not contain it.
    """

    pid: int | None
    host: str | None


class WorkerHolder(Holder):
    """A worker, which shares the lock with other workers, or will once the store is created."""


class Unknown(Enum):
    """The type of ``UNKNOWN``."""

    HOLDER = "unknown"


# The result of ``lock_holders`` if it cannot find out whether a process holds the lock.
UNKNOWN: Final = Unknown.HOLDER


class FileLock:
    """An advisory lock (``flock``), released when its holder dies, even by kill -9.

    The file's content names the holders for messages only; the kernel keeps the lock itself.

    Attributes:
        exists: whether the file system has locks, so that this one keeps others out.
        is_shared: whether other processes may hold it too.
    """

    def __init__(
        self,
        path: Path,
        subject: Path,
        *,
        shared: bool = False,
        worker: bool = False,
        required: bool = True,
        advice: str = "",
    ) -> None:
        """Takes the lock at ``path`` for ``subject``, without waiting.

        Args:
            path: the file to lock; created if it is missing.
            subject: the locked file or store, for messages.
            shared: whether other holders of a shared lock are let in.
            worker: whether this process is a worker, for the messages of others.
            required: whether to raise an error if the file system has no locks.
            advice: the advice of the error message if another process holds the lock.

        Raises:
            StoreLockedError: another process holds the lock.
            StorageError: the file cannot be opened, or the file system has no locks.
        """
        self._keeping = threading.Lock()
        self._path, self._subject, self._advice = path, subject, advice
        self._worker = worker
        self.exists, self.is_shared = True, shared
        is_new = self._open()
        try:
            self._take(shared=shared, required=required)
            while not is_open_file(path, self._fd):  # its holder has removed it
                os.close(self._fd)
                is_new = self._open()
                self._take(shared=shared, required=required)
            with named_errors(path):
                if not shared:
                    os.ftruncate(self._fd, 0)
                os.write(self._fd, _own_name(is_worker=worker))
            if is_new:
                # The lock file tells the next build that this is an interrupted creation of a
                # store, and not an unknown folder.
                durable.sync_folder(path.parent)
        except BaseException:
            self.release()
            raise

    def _open(self) -> bool:
        """Opens the file, or creates it; whether it is new."""
        with named_errors(self._path):
            durable.hook("open", self._path, 0)
            is_new = status_of(self._path) is None
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, FILE_MODE)
        return is_new

    def _take(self, *, shared: bool, required: bool) -> None:
        try:
            _take(self._fd, shared=shared)
        except OSError as e:
            if e.errno in NO_LOCKS and not required:
                self.exists = False
                return
            if e.errno in _HELD:
                raise locked_error(self._subject, _holders(self._fd), self._advice) from None
            raise _without_locks(self._path, e) from e

    def share(self) -> None:
        """Turns an exclusive lock into a shared one.

        Raises:
            StoreLockedError: another process took the lock in the instant in which it was free.
        """
        if self.exists:
            self._take(shared=True, required=True)
        self.is_shared = True

    def is_only(self) -> bool:
        """Whether every other worker that has shared this lock has ended, as far as is known.

        Those of other hosts may run, and so may all where the file system has no locks.
        """
        own = WorkerHolder(os.getpid(), socket.gethostname())
        return self.exists and not any(_may_run(h) for h in _named(self._fd) if h != own)

    def take_alone(self) -> bool:
        """Turns a shared lock into an exclusive one if no other process holds it, else releases it.

        Returns:
            Whether the lock is held, by this process alone. True without locks.
        """
        if not self.exists:
            return True
        # The conversion of a lock is a release and a new lock. Two holders that convert at the same
        # time would keep each other out; of two that release first, the last one gets it.
        unlock(self._fd)
        try:
            _take(self._fd, shared=False)
        except BlockingIOError:
            self.release()
            return False
        self.is_shared = False
        return True

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


def lock_holders(path: Path) -> list[Holder] | Unknown:
    """The holders of the lock at ``path``: none if it is free, ``UNKNOWN`` if that is unknown.

    Several workers may hold it. Their names stay in the file until the lock is taken exclusively,
    so that those that have ended on another host may be among them.
    """
    try:
        fd = _opened(path)
    except OSError as e:
        if is_absent(e):
            return []
        if e.errno == errno.EACCES:
            return UNKNOWN
        raise refusal(path, e) from e
    try:
        lock_now(fd, shared=True)
        lock_now(fd)
    except OSError as e:
        return _holders(fd) if e.errno in _HELD else UNKNOWN
    finally:
        os.close(fd)
    return []


def _opened(path: Path) -> int:
    """Opens a lock file, for writing if allowed: NFS needs that for an exclusive lock."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EROFS):
            raise
    return os.open(path, os.O_RDONLY)


def lock_holder(path: Path) -> Holder | Unknown | None:
    """The first of the lock's holders, None if it is free, ``UNKNOWN`` if that is unknown."""
    holders = lock_holders(path)
    return holders if isinstance(holders, Unknown) else next(iter(holders), None)


def locked_error(subject: Path, holders: Sequence[Holder], advice: str = "") -> StoreLockedError:
    """The error for a lock that others hold."""
    names = [(h.pid, h.host) for h in holders if h.pid is not None and h.host is not None]
    return StoreLockedError(subject, names, advice)


def _take(fd: int, *, shared: bool) -> None:
    """Takes a lock, waiting only for the instant in which :func:`lock_holders` may hold it.

    Raises:
        OSError: another process holds the lock, or the file system has no locks.
    """
    for _ in range(_LOOKS):
        try:
            lock_now(fd, shared=shared)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return
    lock_now(fd, shared=shared)


def _without_locks(path: Path, error: OSError) -> StorageError:
    if error.errno not in NO_LOCKS:
        return refusal(path, error)
    reason = f"its file system has no file locks, which keep two writers apart ({error.strerror})"
    return StorageError(path, reason, _ELSEWHERE)


def _own_name(*, is_worker: bool) -> bytes:
    name = {"pid": os.getpid(), "host": socket.gethostname(), "worker": is_worker}
    return json.dumps(name).encode("ascii") + b"\n"


def _holders(fd: int) -> list[Holder]:
    """The processes that hold a lock which could not be taken; closes nothing.

    One that holds it alone has written its name over all others. Workers have added theirs to what
    was there, and some of them may have ended.
    """
    named = _named(fd)
    try:
        lock_now(fd, shared=True)
    except OSError:
        return named[:1] or [Holder(None, None)]
    unlock(fd)
    workers = [each for each in named if isinstance(each, WorkerHolder) and _may_run(each)]
    return [*workers] or [WorkerHolder(None, None)]


def _named(fd: int) -> list[Holder]:
    """The processes that a lock file names."""
    named: list[Holder] = []
    with suppress(OSError):
        for line in os.pread(fd, _CONTENT_BYTES, 0).splitlines():
            with suppress(ValueError, AttributeError, TypeError, LookupError):
                content = json.loads(line)
                kind = WorkerHolder if content["worker"] else Holder
                named.append(kind(int(content["pid"]), str(content["host"])))
    return named


def _may_run(holder: Holder) -> bool:
    """Whether a process runs, as far as is known: those of other hosts may."""
    return holder.host != socket.gethostname() or _is_alive(holder.pid)


def _is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
