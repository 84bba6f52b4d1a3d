"""Puts files into the page cache or drops them from it, for warm and cold reads.

No privilege is needed: ``posix_fadvise`` drops the clean pages of a file that no process has
mapped, and ``mincore`` tells which pages of a mapped file are in memory. (Linux does not tell about
files that one could not write to.) What a hypervisor keeps of the disk stays where it is.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MADV_POPULATE_READ = 22
_FAILED = ctypes.c_void_p(-1).value


def files_of(folder: Path) -> list[Path]:
    """All files below a folder that hold anything."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def load(files: Iterable[Path]) -> None:
    """Reads files once, so that they are in the page cache."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def map_pages(folder: Path) -> None:
    """Enters every page of this process's mappings of a folder's files into its page table.

    Otherwise a process pays a page fault for whatever it has not read before, which it does only in
    its first epoch. Older kernels (before 5.14) do not know how; then the first rounds pay.
    """
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        addresses, _, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].startswith(f"{folder.resolve()}/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            _libc.madvise(start, end - start, _MADV_POPULATE_READ)


def drop(files: Iterable[Path]) -> None:
    """Takes files out of the page cache; pages that a process has mapped stay."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # only clean pages are dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident_bytes(files: Iterable[Path]) -> int:
    """How much of files is in memory, in whole pages."""
    return sum(map(_resident_bytes_of, files))


def _resident_bytes_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    try:
        if _libc.mincore(address, size, pages.ctypes.data):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        _libc.munmap(address, size)
    return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE
