"""The memory-mapped reader: all chunk files of a feature as one flat array.

One range of addresses is reserved and each chunk's payload is mapped into it side by side, so that
row ``sample * V + view`` of the whole feature is row ``sample * V + view`` of one NumPy array and a
batch is a single ``take``. No file descriptor stays open (``numpy.memmap`` holds one per file and
stops at the process's limit, 1,024 on most systems).

How the kernel is to fetch the files is said once, when they are mapped. Its own read-ahead drags in
the neighbours of every row, which random rows have no use for.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurestore.arrays import CHECKSUM_BYTES, ArraySpec
from featurestore.errors import ConfigError, CorruptStoreError, StorageError
from featurestore.memory import available_bytes

Advice = Literal["auto", "populate", "willneed", "random", "none"]
ADVICE = ("auto", "populate", "willneed", "random", "none")

_PROT_NONE, _PROT_READ = 0, mmap.PROT_READ
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = mmap.MAP_SHARED, mmap.MAP_PRIVATE, 0x10
_MAP_NORESERVE = 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module does not name it
_MADV = {
    "populate": _MADV_POPULATE_READ,
    "willneed": mmap.MADV_WILLNEED,
    "random": mmap.MADV_RANDOM,
}


def choose_advice(size_bytes: int, *, sparse: bool = False) -> Advice:
    """How files of ``size_bytes`` together are to be fetched, from the memory that can be had.

    Up to half of it, everything is read and mapped at opening (``populate``): no batch waits for
    the disk or for a page fault afterwards. Up to nine tenths, the kernel is asked to read it all
    in the background (``willneed``), and may drop some of it again. What is larger, or what only
    one row in many is ever read of, is fetched page by page as it is asked for (``random``).

    Args:
        size_bytes: of all files that will be mapped.
        sparse: whether only one view of each sample will be read.
    """
    free = available_bytes()
    if sparse or size_bytes > 0.9 * free:
        return "random"
    return "populate" if size_bytes <= free / 2 else "willneed"


def advise(array: npt.NDArray[Any], advice: Advice, path: Path) -> None:
    """Gives the kernel advice on a mapped array.

    Args:
        array: a mapping, or a part of one.
        advice: one of ``ADVICE``; ``auto`` chooses by the array's size.
        path: the file, for the message.

    Raises:
        StorageError: ``populate`` met a page that cannot be read from the disk.
    """
    if advice == "auto":
        advice = choose_advice(array.nbytes)
    address = int(array.__array_interface__["data"][0])
    start = address - address % mmap.PAGESIZE
    _madvise(start, address + array.nbytes - start, advice, path)


def _madvise(address: int, size: int, advice: str, path: Path) -> None:
    if advice not in _MADV or size == 0:
        return
    if _libc.madvise(address, size, _MADV[advice]) == 0:
        return
    number = ctypes.get_errno()
    if advice == "populate" and number == errno.EINVAL:  # an older kernel
        _madvise(address, size, "willneed", path)
    elif advice == "populate" and number in (errno.EFAULT, errno.EIO):
        # A batch that touched this page would end the process with SIGBUS.
        raise StorageError(path, "a part of it cannot be read from the disk")
    # All else is advice that was not taken: without memory to spare, for example.


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, size, protection, flags, fd, 0)
    if found is None or found == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def map_chunks(
    root: Path, spec: ArraySpec, chunks: Iterable[int], advice: Advice = "none"
) -> npt.NDArray[Any]:
    """Maps the given chunks of one array into a single flat array.

    Args:
        root: the store.
        spec: the array.
        chunks: the committed chunks. Rows of all others must never be touched: nothing is mapped
            there, and reading them ends the process.
        advice: how the kernel is to fetch them, one of ``ADVICE``; ``auto`` chooses by the size of
            the array.

    Returns:
        ``dtype [chunks * rows per chunk, ...]``, read-only. The mapping lives as long as any view
        of it does.

    Raises:
        CorruptStoreError: a chunk's file is missing or not of its size.
        StorageError: a file cannot be opened; with ``populate``, also where it cannot be read.
        ConfigError: this machine's pages are larger than the chunks are aligned for.
    """
    if spec.chunk_bytes % mmap.PAGESIZE:
        raise ConfigError(
            f"The chunks of {spec.name} hold {spec.chunk_bytes} bytes, which is not a multiple "
            f"of this machine's page of {mmap.PAGESIZE} bytes.\n"
            "Materialize the store where it was built, or read it with zarr."
        )
    size = spec.chunks * spec.chunk_bytes
    base = _mmap(None, size, _PROT_NONE, _MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
    # A subclass, because plain ctypes arrays take no weak reference.
    buffer_type: Any = type("MappedChunks", (ctypes.c_uint8 * size,), {})
    buffer = buffer_type.from_address(base)
    # NumPy's array keeps the buffer alive, the buffer's end unmaps. Not at exit: other threads may
    # still be reading then, and the kernel unmaps anyway.
    weakref.finalize(buffer, _libc.munmap, base, size).atexit = False
    if advice == "auto":
        advice = choose_advice(size)
    for chunk in chunks:
        _map_chunk(root, spec, chunk, base)
        address = base + chunk * spec.chunk_bytes
        _madvise(address, spec.chunk_bytes, advice, root / spec.file(chunk))
    flat = np.frombuffer(memoryview(buffer).toreadonly(), dtype=spec.dtype)
    return flat.reshape(spec.chunks * spec.rows, *spec.shape[1:])


def _map_chunk(root: Path, spec: ArraySpec, chunk: int, base: int) -> None:
    file = spec.file(chunk)
    try:
        fd = os.open(root / file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptStoreError(file, "the file is missing", chunk=chunk) from None
    except OSError as e:
        raise StorageError(root / file, e.strerror or str(e)) from e
    try:
        found, expected = os.fstat(fd).st_size, spec.chunk_bytes + CHECKSUM_BYTES
        if found != expected:  # reading past the end of a shorter file would be a SIGBUS
            raise CorruptStoreError(file, f"{found} bytes, expected {expected}", chunk=chunk)
        address = base + chunk * spec.chunk_bytes
        _mmap(address, spec.chunk_bytes, _PROT_READ, _MAP_SHARED | _MAP_FIXED, fd)
    finally:
        os.close(fd)
