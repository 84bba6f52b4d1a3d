"""Every write and fsync of the project; ``removal`` renames and removes.

A file appears under its name completely or not at all, and survives a power cut once the call has
returned: the bytes are written to ``<name>.partial`` in the same folder (a rename across file
systems is not atomic) and synced, the file is renamed, and the folder is synced.

A failed fsync is never retried: the kernel may have dropped the dirty pages and marked them clean,
so a second call would report success for data that is lost.

Files and folders get the permissions that the umask leaves, so that a group can share a store.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurestore.errors import StorageError, StoreLockedError, UnsyncedFolderWarning
from featurestore.system.flock import HAS_LOCKS, lock_where_possible
from featurestore.system.platforms import needs_linux
from featurestore.system.refusals import is_folder, named_errors, status_of

PARTIAL = ".partial"
# The end of a temporary file's name, with or without the name of its writer.
_PARTIAL_END = re.compile(r"(\.[A-Za-z0-9_-]+-[0-9]+-[0-9a-f]{8})?\.partial$")
# The mode that ``open`` gets; the umask removes permissions from it.
FILE_MODE = 0o666

# How often to reopen a file that was renamed or removed before it could be locked.
_TRIES = 1000
# Errors of ``link`` where the file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
# Errors of ``fsync`` where the file system cannot sync folders. The kernel returns EINVAL if a file
# system does not implement it (CIFS before Linux 4.17, some FUSE and cluster file systems); FUSE
# programs also return ENOTSUP, which equals EOPNOTSUPP on Linux. A failed sync returns EIO, ENOSPC
# or EDQUOT, never these. EBADF, which other systems return here, would be a defect on Linux.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def _pass(operation: str, path: Path, size: int) -> int:  # noqa: ARG001
    return size


def _refuse(operation: str, path: Path, size: int) -> int:  # noqa: ARG001
    raise needs_linux(f"Writing {path}")


# Called before each operation with its name, its path and its size in bytes. The result limits the
# size of a write, as a signal or a full disk may. Only the fault tests replace this function.
hook: Callable[[str, Path, int], int] = _pass if HAS_LOCKS else _refuse


def write_all(fd: int, data: memoryview, path: Path) -> None:
    """Writes all of ``data`` to the open file ``fd``, which has the name ``path``."""
    # A single call may write fewer bytes than requested: near a full disk, at a file-size limit.
    while data:
        allowed = hook("write", path, len(data))
        data = data[os.write(fd, data[:allowed]) :]


def fsync(fd: int, path: Path) -> None:
    """Syncs the open file ``fd``, which has the name ``path``."""
    hook("fsync", path, 0)
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Makes creations, renames and removals in ``folder`` durable.

    If the file system cannot sync folders, its server decides when they become durable, and this
    function cannot wait for that: it issues an ``UnsyncedFolderWarning``, once per process.
    """
    with named_errors(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fsync(fd, folder)
        except OSError as e:
            if e.errno not in _NO_FOLDER_SYNC:
                raise
            _warn_unsynced(folder, e)
        finally:
            os.close(fd)


_warned = False


def _warn_unsynced(folder: Path, error: OSError) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    message = (
        f"The file system of {folder} cannot sync folders ({error.strerror}), so a power cut may "
        "lose the files that were renamed last. `verify` lists lost files."
    )
    warnings.warn(message, UnsyncedFolderWarning, stacklevel=3)


def make_folder(folder: Path) -> None:
    """Creates ``folder`` and its missing parents, durably; an existing folder is left unchanged."""
    if is_folder(folder):
        return
    make_folder(folder.parent)
    with named_errors(folder):
        hook("mkdir", folder, 0)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError as e:
            advice = "Move it away, or choose another folder."
            raise StorageError(
                folder, "a file of this name exists, and a folder is needed", advice
            ) from e
    sync_folder(folder.parent)


def target_name(name: str) -> str:
    """The name that a temporary file is to be renamed to; ``name`` itself for any other file."""
    return _PARTIAL_END.sub("", name)


class PartialFile:
    """A file under construction, named ``<target>.partial``; ``write`` appends to it.

    The file is locked until it is renamed to its target: without the lock, two processes that write
    the same target would write into one another's file. Processes that may write the same target at
    the same time each have a name of a ``writer``: the file is then ``<target>.<writer>.partial``.

    Raises:
        StoreLockedError: another process is writing the same target.
        StorageError: it cannot be created.
    """

    def __init__(self, target: Path, writer: str = "") -> None:
        self.target = target
        self.path = target.with_name(target.name + (writer and f".{writer}") + PARTIAL)
        self.size = 0
        with named_errors(self.path):
            hook("open", self.path, 0)
            try:
                self._fd = self._open()
            except (FileNotFoundError, NotADirectoryError) as e:
                reason = f"{e.strerror} ({target.parent} is not a folder)"
                advice = "Create that folder, or choose another place."
                raise StorageError(target, reason, advice) from e

    def _open(self) -> int:
        """Opens the file, locks it and empties it; returns its descriptor."""
        for _ in range(_TRIES):
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, FILE_MODE)
            try:
                lock_where_possible(fd)
                if is_open_file(self.path, fd):
                    os.ftruncate(fd, 0)
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise StoreLockedError(self.target, []) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # the process that held the lock has since renamed or removed the file
        raise StorageError(self.path, "it is replaced again and again")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends ``data``.

        Raises:
            StorageFullError: no space or quota left.
            StorageError: any other failure of the file system.
        """
        view = memoryview(data).cast("B")
        with named_errors(self.target, len(view)):
            write_all(self._fd, view, self.path)
        self.size += len(view)

    def sync(self) -> None:
        """Syncs the file under its temporary name."""
        with named_errors(self.target, self.size):
            fsync(self._fd, self.path)

    def rename(self) -> None:
        """Renames the file to its target and closes it; durable once the folder is synced."""
        with named_errors(self.target):
            hook("rename", self.target, 0)
            self.path.replace(self.target)
            self._close()

    def link(self) -> bool:
        """Gives the file its target's name unless a file has it already; closes the file.

        Durable once the folder is synced. Where the file system has no hard links, another process
        that does the same at the same time may replace the file.

        Returns:
            Whether the file has got the name. False may also mean that it did, on a network file
            system that repeated the request because the answer was lost.
        """
        is_new = True
        with named_errors(self.target):
            hook("link", self.target, 0)
            try:
                os.link(self.path, self.target)
            except FileExistsError:
                is_new = False
            except OSError as e:
                if e.errno not in _NO_LINKS:
                    raise
                if is_new := status_of(self.target) is None:
                    self.rename()
        self.discard()
        return is_new

    def discard(self) -> None:
        """Removes and closes an unfinished file; never raises, so that the first error survives."""
        if self._fd < 0:
            return  # it was renamed to its target
        with suppress(OSError):  # the next build removes it
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_open_file(path: Path, fd: int) -> bool:
    """Whether ``path`` still names the file that the descriptor ``fd`` refers to."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def open_replace(path: Path, writer: str = "") -> Iterator[PartialFile]:
    """Writes ``path`` in a ``with`` block: durable afterwards, unchanged if the block raises.

    Args:
        path: the file.
        writer: see :class:`PartialFile`.

    Raises:
        StorageFullError: no space or quota left.
        StorageError: any other failure of the file system.
        StoreLockedError: another process is writing the same file.
    """
    file = PartialFile(path, writer)
    try:
        yield file
        file.sync()
        file.rename()
    except BaseException:
        file.discard()
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes, writer: str = "") -> None:
    """Writes ``path`` atomically and durably, replacing an existing file."""
    with open_replace(path, writer) as file:
        file.write(data)


def create_file(path: Path, data: bytes, writer: str) -> bool:
    """Writes ``path`` atomically and durably, unless a file has that name.

    Returns:
        Whether the file was created, see :meth:`PartialFile.link`.
    """
    file = PartialFile(path, writer)
    try:
        file.write(data)
        file.sync()
        is_new = file.link()
    except BaseException:
        file.discard()
        raise
    sync_folder(path.parent)
    return is_new


def replace_files(
    contents: Iterable[tuple[Path, Iterable[bytes | memoryview]]], writer: str = ""
) -> None:
    """Writes several files, each atomically; all are durable when the call returns.

    All files are synced under temporary names before the first is renamed, so that a full disk
    leaves none of them behind. Each folder is synced once.
    """
    files: list[PartialFile] = []
    try:
        for path, parts in contents:
            files.append(PartialFile(path, writer))
            for part in parts:
                files[-1].write(part)
            files[-1].sync()
        for file in files:
            file.rename()
    except BaseException:
        for file in files:
            file.discard()
        raise
    for folder in sorted({file.target.parent for file in files}):
        sync_folder(folder)


def append_line(path: Path, line: bytes) -> None:
    """Appends ``line`` and a line feed to ``path``, durably.

    A failed append is truncated again if the disk allows it, so that no torn line remains;
    otherwise readers ignore a last line without a line feed.
    """
    data = line + b"\n"
    with named_errors(path, len(data)):
        hook("open", path, 0)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        end = os.fstat(fd).st_size
        try:
            write_all(fd, memoryview(data), path)
            fsync(fd, path)
        except BaseException:
            _truncate_quietly(fd, end)
            raise
        finally:
            os.close(fd)


def _truncate_quietly(fd: int, end: int) -> None:
    try:
        os.ftruncate(fd, end)
    except OSError:
        return  # the caller raises the original error


def truncate(path: Path, size: int) -> None:
    """Truncates ``path`` to ``size`` bytes, durably."""
    with named_errors(path):
        hook("truncate", path, size)
        fd = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
            fsync(fd, path)
        finally:
            os.close(fd)
