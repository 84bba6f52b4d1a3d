"""Switches off what only Linux has, so that a process sees what Python offers on another system.

Found first on the path of a process whose environment names a system in ``MANYVIEWS_TEST_SYSTEM``.
The libraries are imported before: this is a test of this project's code, not of theirs. The lists
follow the notes on availability in Python's documentation. C code of libraries is not affected.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Mapping
from types import ModuleType
from typing import Any

VARIABLE = "MANYVIEWS_TEST_SYSTEM"
SYSTEMS = {"macOS": "darwin", "Windows": "win32"}
# What the readers use, and modules that look at the system when they are imported.
_LIBRARIES = (
    *("numpy", "torch", "torch.utils.data", "torch.multiprocessing", "zarr", "numcodecs.zstd"),
    *("google_crc32c", "multiprocessing.popen_spawn_posix", "multiprocessing.resource_tracker"),
    *("multiprocessing.pool", "multiprocessing.synchronize", "subprocess", "asyncio"),
)
# Names that only Linux has, or Linux and another system than these two.
_LINUX = {
    os: """memfd_create eventfd eventfd_read eventfd_write posix_fadvise posix_fallocate getrandom
    copy_file_range splice pidfd_open setns unshare getxattr setxattr listxattr removexattr
    sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
    sched_setscheduler sched_rr_get_interval sched_param getresuid setresuid fdatasync pipe2
    O_DIRECT O_TMPFILE O_PATH O_NOATIME O_LARGEFILE O_RSYNC""",
    mmap: """MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTFORK MADV_DOFORK MADV_MERGEABLE
    MADV_UNMERGEABLE MADV_REMOVE MADV_HWPOISON MADV_DODUMP MADV_DONTDUMP MAP_POPULATE
    MAP_DENYWRITE MAP_EXECUTABLE MAP_STACK""",
    resource: "RUSAGE_THREAD prlimit RLIMIT_OFILE RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO",
    signal: "SIGPWR SIGSTKFLT SIGPOLL SIGCLD SIGRTMIN SIGRTMAX sigtimedwait sigwaitinfo",
}
# Names that Linux and macOS have, but not Windows.
_POSIX = {
    os: """fork forkpty register_at_fork pread pwrite preadv pwritev readv writev sendfile lockf
    statvfs fstatvfs sysconf sysconf_names confstr confstr_names pathconf fpathconf mkfifo mknod
    getuid geteuid getgid getegid getpgid getpgrp getsid setsid setuid setgid setpgid getgroups
    killpg nice uname getloadavg chown fchown lchown chroot fchdir sync sched_yield ttyname openpty
    getpriority setpriority wait wait3 wait4 waitid posix_spawn posix_spawnp
    O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_NOCTTY O_SYNC O_DSYNC O_ASYNC O_NDELAY
    ST_RDONLY F_LOCK F_TLOCK F_ULOCK F_TEST""",
    mmap: """PROT_READ PROT_WRITE PROT_EXEC MAP_SHARED MAP_PRIVATE MAP_ANON MAP_ANONYMOUS
    MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MAP_NORESERVE""",
    signal: """SIGHUP SIGUSR1 SIGUSR2 SIGCHLD SIGALRM SIGPIPE SIGQUIT SIGSTOP SIGCONT SIGTSTP
    alarm setitimer getitimer pthread_sigmask pthread_kill sigwait sigpending siginterrupt pause""",
}
_PREFIXES = {os: ("RWF_", "SCHED_", "POSIX_FADV_", "CLONE_", "XATTR_"), mmap: ("MADV_POP",)}
_POSIX_MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix")
_PROJECT = ("featurestore", "manyviews", "producers", "consumers")
_FREE_BYTES = 3 << 30


class _WindowsMap(mmap.mmap):
    """A map with the arguments of Windows, which takes neither flags nor advice."""

    def __new__(
        cls,
        fileno: int,
        length: int,
        tagname: str | None = None,
        access: int = mmap.ACCESS_DEFAULT,
        offset: int = 0,
    ) -> _WindowsMap:
        return super().__new__(cls, fileno, length, access=access, offset=offset)

    @property
    def madvise(self) -> Any:
        raise AttributeError("madvise")


def _global_memory_status(status: Any) -> int:
    """GlobalMemoryStatusEx: the length, 64, comes first, the available bytes after 16 bytes."""
    memory = memoryview(status).cast("B")
    if int.from_bytes(memory[:4], "little") != 64:
        return 0
    memory[16:24] = _FREE_BYTES.to_bytes(8, "little")
    return 1


def _refuse_linux(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuses files of the kernel, and functions of the C library."""
    if event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(("/proc", "/sys/")):
            raise FileNotFoundError(2, "not on this system", path)
    if event == "ctypes.dlopen" and arguments[0] is None:
        raise TypeError("this system's C library has no name")


def _remove(names: Mapping[ModuleType, str]) -> None:
    for module, text in names.items():
        for name in text.split():
            vars(module).pop(name, None)
    for module, prefixes in _PREFIXES.items():
        for name in [name for name in vars(module) if name.startswith(prefixes)]:
            delattr(module, name)


def _set(module: ModuleType, **values: Any) -> None:
    """Sets attributes that the module does not have on this system, or not with this type."""
    vars(module).update(values)


def _nothing(*_: object, **__: object) -> None:
    """Does nothing."""


def switch_off(system: str) -> None:
    """Makes this process see ``system``; the current thread must not need Linux any more."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    # What these modules found out when they were imported.
    _set(shutil, _use_fd_functions=False, _USE_CP_SENDFILE=False, _copyxattr=_nothing)
    _set(tempfile, _O_TMPFILE_WORKS=False)
    _set(importlib.import_module("multiprocessing.resource_tracker"), _HAVE_SIGMASK=False)
    multiprocessing.set_start_method("spawn", force=True)  # a child has one already
    _remove(_LINUX)
    if system == "Windows":
        usage = shutil.disk_usage(os.curdir)  # which asks the system in another way there
        _set(shutil, disk_usage=lambda _: usage)
        _remove(_POSIX)
        _set(os, O_BINARY=0x8000)
        _set(io, _WindowsConsoleIO=type("_WindowsConsoleIO", (), {}))  # pytest names it
        _set(mmap, mmap=_WindowsMap)
        modules: dict[str, Any] = sys.modules
        modules.update(dict.fromkeys(_POSIX_MODULES))
        kernel = types.SimpleNamespace(GlobalMemoryStatusEx=_global_memory_status)
        _set(ctypes, windll=types.SimpleNamespace(kernel32=kernel))
    sys.platform = SYSTEMS[system]
    sys.addaudithook(_refuse_linux)


class _AtFirstImport:
    """Switches Linux off before the first import of this project."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in _PROJECT:
            sys.meta_path.remove(self)
            switch_off(os.environ[VARIABLE])


if os.environ.get(VARIABLE):
    for _name in list(sys.modules):  # of the process that this one was forked from
        if _name.partition(".")[0] in _PROJECT:
            del sys.modules[_name]
    sys.meta_path.insert(0, _AtFirstImport())
