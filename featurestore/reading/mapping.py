"""The memory-mapped reader: all chunk files of a feature as one array.

One range of addresses is reserved and each chunk's payload is mapped into it, at equal distances,
so that all rows of a feature are rows of one NumPy array and a batch is a single ``take``. No file
descriptor stays open (``numpy.memmap`` holds one per file and stops at the process's limit, 1,024
on most systems).

Each chunk begins at a multiple of 2 MiB where that at most doubles the range of addresses: there
the kernel can map a cached file in pages of that size, which is what makes random rows of one large
``.npy`` quick. Nothing is mapped between chunks, and no memory is used for it.

How the kernel is to fetch the files is said once, when they are mapped. Its own read-ahead drags in
the neighbours of every row, which random rows have no use for.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import random
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, CorruptStoreError, StorageError
from featurestore.storage.arrays import CHECKSUM_BYTES, ArraySpec
from featurestore.system.durable import not_there
from featurestore.system.limits import available_bytes
from featurestore.system.refusals import is_absent, named_errors, refusal

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

_HUGE_PAGE = 2 << 20
_PLACES = 64  # that are looked at to tell whether files are in the page cache
_places = random.Random()  # of its own: a program may have seeded the module's

_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module does not name it
_MADV = {
    "populate": _MADV_POPULATE_READ,
    "willneed": mmap.MADV_WILLNEED,
    "random": mmap.MADV_RANDOM,
}


def choose_advice(files: Sequence[Path | str], size_bytes: int, *, sparse: bool = False) -> Advice:
    """How files are to be fetched, from where they are and the memory that can be had.

    What is in the page cache is mapped at opening (``populate``), so that no batch waits for a page
    fault afterwards; between half and nine tenths of the memory in the background (``willneed``).
    Everything else is fetched page by page as it is asked for (``random``): what lies on the disk,
    so that the first batch does not wait for the last row; what is larger than memory; and what
    only one row in many is ever read of.

    Args:
        files: all that will be mapped.
        size_bytes: of them together.
        sparse: whether only one view of each sample will be read.
    """
    free = available_bytes()
    if sparse or size_bytes > 0.9 * free or not is_cached(files):
        return "random"
    return "populate" if size_bytes <= free / 2 else "willneed"


def is_cached(files: Sequence[Path | str]) -> bool:
    """Whether nine tenths of some places in the files, evenly spread, are in the page cache.

    True also where the file system does not tell. The places are others each time, because looking
    at one makes the kernel fetch it.
    """
    some = files[:: max(1, len(files) // _PLACES)]
    each = max(1, _PLACES // max(1, len(some)))
    allowed = len(some) * each // 10
    for file in some:
        allowed -= sum(not there for there in _places_cached(file, each))
        if allowed < 0:  # the others would not change it, and looking takes time
            return False
    return True


def _places_cached(path: Path | str, count: int) -> Iterator[bool]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # who maps it gets the error
    try:
        size = os.fstat(fd).st_size
        for number in range(count):
            place = int((number + _places.random()) * size / count)
            try:
                os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT)
                yield True
            except BlockingIOError:
                yield False
            except OSError:
                yield True
    finally:
        os.close(fd)


def advise(array: npt.NDArray[Any], advice: Advice, path: Path) -> None:
    """Gives the kernel advice on a mapped array.

    Args:
        array: a mapping, or a part of one.
        advice: one of ``ADVICE``, but not ``auto``.
        path: the file, for the message.

    Raises:
        StorageError: ``populate`` met a page that cannot be read from the disk.
    """
    address = int(array.__array_interface__["data"][0])
    start = address - address % mmap.PAGESIZE
    _madvise(start, address + array.nbytes - start, advice, path)


def _madvise(address: int, size: int, advice: str, path: Path | str) -> None:
    if advice not in _MADV or size == 0:
        return
    if advice == "populate":
        # What is not in the page cache yet is then read into it in huge pages: sooner, and later
        # rows are found through fewer page-table entries. Refused by a kernel that has none.
        _libc.madvise(address, size, mmap.MADV_HUGEPAGE)
    if _libc.madvise(address, size, _MADV[advice]) == 0:
        return
    number = ctypes.get_errno()
    if advice == "populate" and number == errno.EINVAL:  # an older kernel
        _madvise(address, size, "willneed", path)
    elif advice == "populate" and number in (errno.EFAULT, errno.EIO):
        # A batch that touched this page would end the process with SIGBUS.
        raise StorageError(Path(path), "a part of it cannot be read from the disk")
    # All else is advice that was not taken: without memory to spare, for example.


def will_need(flat: npt.NDArray[Any], rows: npt.NDArray[np.integer], count: int) -> None:
    """Asks the kernel to read rows in the background: for all of them at once.

    Whoever touches mapped rows one after the other waits for each of them.

    Args:
        flat: ``[n, D]``, a mapping.
        rows: ``[B]``, the first row of each run.
        count: rows in a run.
    """
    address, row_bytes = int(flat.__array_interface__["data"][0]), flat.strides[0]
    first = address + rows.astype(np.int64) * row_bytes
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    sizes = (first + count * row_bytes - start).tolist()
    for begin, size in zip(start.tolist(), sizes, strict=True):
        _libc.madvise(begin, size, mmap.MADV_WILLNEED)


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address, size, protection, flags, fd, 0)
    if found is None or found == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(found)


def distance(spec: ArraySpec) -> int:
    """Bytes from the beginning of a chunk to that of the next: whole rows and whole huge pages."""
    row_bytes = spec.chunk_bytes // math.prod(spec.chunk_shape[:-1])
    step = math.lcm(_HUGE_PAGE, row_bytes)
    found = -(-spec.chunk_bytes // step) * step
    return found if found <= 2 * spec.chunk_bytes else spec.chunk_bytes


def map_chunks(
    root: Path, spec: ArraySpec, chunks: Iterable[int], advice: Advice = "none"
) -> npt.NDArray[Any]:
    """Maps the given chunks of one array into a single array.

    Args:
        root: the store.
        spec: the array.
        chunks: the committed chunks. Rows of all others must never be touched: nothing is mapped
            there, and reading them ends the process.
        advice: how the kernel is to fetch them, one of ``ADVICE``, but not ``auto``.

    Returns:
        ``dtype [chunks, rows per chunk, ...]``, read-only; a chunk is contiguous, and
        :func:`distance` tells how far the next one is. The mapping lives as long as any view of it
        does.

    Raises:
        CorruptStoreError: a chunk's file is missing or not of its size.
        StorageError: a file cannot be opened or mapped; with ``populate``, also where it cannot be
            read.
        ConfigError: this machine's pages are larger than the chunks are aligned for.
    """
    if spec.chunk_bytes % mmap.PAGESIZE:
        raise ConfigError(
            f"The chunks of {spec.name} hold {spec.chunk_bytes} bytes, which is not a multiple "
            f"of this machine's page of {mmap.PAGESIZE} bytes.\n"
            "Materialize the store where it was built, or read it with zarr."
        )
    apart = distance(spec)
    with named_errors(root / spec.name):
        buffer, base = _reserve(spec.chunks * apart)
    for chunk in chunks:
        # A string: joining paths takes a third of the time that opening a store does.
        path, address = f"{root}/{spec.file(chunk)}", base + chunk * apart
        _map_chunk(path, spec, chunk, address)
        _madvise(address, spec.chunk_bytes, advice, path)
    dtype = np.dtype(spec.dtype)
    flat = np.frombuffer(memoryview(buffer).toreadonly(), dtype=dtype)
    inner = np.empty(0, dtype).reshape(0, *spec.chunk_shape).strides[1:]
    return np.lib.stride_tricks.as_strided(
        flat, (spec.chunks, *spec.chunk_shape), (apart, *inner), writeable=False
    )


def _reserve(size: int) -> tuple[Any, int]:
    """A range of addresses from a huge page's beginning on: what keeps it, and the first one."""
    whole = size + _HUGE_PAGE
    found = _mmap(None, whole, _PROT_NONE, _MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
    base = -(-found // _HUGE_PAGE) * _HUGE_PAGE
    # A subclass, because plain ctypes arrays take no weak reference.
    buffer_type: Any = type("MappedChunks", (ctypes.c_uint8 * size,), {})
    buffer = buffer_type.from_address(base)
    # NumPy's array keeps the buffer alive, the buffer's end unmaps. Not at exit: other threads may
    # still be reading then, and the kernel unmaps anyway.
    weakref.finalize(buffer, _libc.munmap, found, whole).atexit = False
    return buffer, base


def _map_chunk(path: str, spec: ArraySpec, chunk: int, address: int) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        if is_absent(e):
            raise not_there(spec.file(chunk), e, chunk) from None
        raise refusal(Path(path), e) from e
    try:
        found, expected = os.fstat(fd).st_size, spec.chunk_bytes + CHECKSUM_BYTES
        if found != expected:  # reading past the end of a shorter file would be a SIGBUS
            raise CorruptStoreError(
                spec.file(chunk), f"{found} bytes, expected {expected}", chunk=chunk
            )
        _mmap(address, spec.chunk_bytes, _PROT_READ, _MAP_SHARED | _MAP_FIXED, fd)
    except OSError as e:  # ENODEV where its file system cannot map files
        raise refusal(Path(path), e) from e
    finally:
        os.close(fd)
