"""The memory-mapped reader: all chunk files of a feature as one array.

One range of addresses is reserved and each chunk's payload is mapped into it, at equal distances,
so that all rows of a feature are rows of one NumPy array and a batch is a single ``take``. No file
descriptor stays open (``numpy.memmap`` keeps one per file and fails at the process's limit, 1,024
on most systems).

Each chunk begins at a multiple of 2 MiB if that at most doubles the range of addresses: the kernel
can then map a cached file in pages of that size, which makes random access to rows fast. The gaps
between chunks are not mapped and use no memory.

The kernel gets advice on how to fetch the files once, when they are mapped. Its default read-ahead
also fetches the neighbours of every row, which random access does not need.

All of this is written for Linux. On other systems, ``numpy.memmap`` maps single chunks without
advice (``chunk_files``).
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
from featurestore.storage.shape import CHECKSUM_BYTES, ArraySpec
from featurestore.system.contents import not_there
from featurestore.system.limits import available_bytes
from featurestore.system.platforms import ON_LINUX
from featurestore.system.refusals import is_absent, named_errors, refusal

Advice = Literal["auto", "populate", "willneed", "random", "none"]
ADVICE = ("auto", "populate", "willneed", "random", "none")

if ON_LINUX:
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

_HUGE_PAGE = 2 << 20
_PLACES = 64  # number of positions to probe for whether files are in the page cache
_places = random.Random()  # a separate generator: a program may have seeded the module's


def resolved(
    advice: Advice, files: Sequence[Path | str], size_bytes: int, *, sparse: bool = False
) -> Advice:
    """Resolves ``auto``, see :func:`choose_advice`; systems other than Linux get no advice."""
    if not ON_LINUX:
        return "none"
    return choose_advice(files, size_bytes, sparse=sparse) if advice == "auto" else advice


def choose_advice(files: Sequence[Path | str], size_bytes: int, *, sparse: bool = False) -> Advice:
    """Chooses advice for the kernel by the available memory and the state of the page cache.

    Files in the page cache are mapped completely at opening (``populate``), so that no batch waits
    for a page fault; if they take between half and nine tenths of the available memory, in the
    background (``willneed``). In all other cases pages are fetched on access (``random``): files on
    the disk, so that the first batch does not wait for the last row; files larger than memory; and
    files of which only a small part of the rows is read.

    Args:
        files: all files that will be mapped.
        size_bytes: total size of the files in bytes.
        sparse: whether only one view of each sample will be read.
    """
    free = available_bytes()
    if sparse or size_bytes > 0.9 * free or not is_cached(files):
        return "random"
    return "populate" if size_bytes <= free / 2 else "willneed"


def is_cached(files: Sequence[Path | str]) -> bool:
    """Whether nine tenths of evenly spread positions in the files are in the page cache.

    Also True if the file system does not support the query. The positions differ between calls,
    because a query makes the kernel fetch the page.
    """
    some = files[:: max(1, len(files) // _PLACES)]
    each = max(1, _PLACES // max(1, len(some)))
    allowed = len(some) * each // 10
    for file in some:
        allowed -= sum(not cached for cached in _places_cached(file, each))
        if allowed < 0:  # the remaining files cannot change the result
            return False
    return True


def _places_cached(path: Path | str, count: int) -> Iterator[bool]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # mapping the file raises the error
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
        path: the file, for the error message.

    Raises:
        StorageError: ``populate`` cannot read a page from the disk.
    """
    if advice == "none":
        return
    address = int(array.__array_interface__["data"][0])
    start = address - address % mmap.PAGESIZE
    _madvise(start, address + array.nbytes - start, advice, path)


def _madvise(address: int, size: int, advice: str, path: Path | str) -> None:
    if advice not in _MADV or size == 0:
        return
    if advice == "populate":
        # The kernel then reads missing pages into the page cache as huge pages, which is faster and
        # needs fewer page-table entries. A kernel without huge pages refuses this.
        _libc.madvise(address, size, mmap.MADV_HUGEPAGE)
    if _libc.madvise(address, size, _MADV[advice]) == 0:
        return
    number = ctypes.get_errno()
    if advice == "populate" and number == errno.EINVAL:  # an older kernel
        _madvise(address, size, "willneed", path)
    elif advice == "populate" and number in (errno.EFAULT, errno.EIO):
        # A batch that touched this page would end the process with SIGBUS.
        raise StorageError(Path(path), "a part of it cannot be read from the disk")
    # Other errors only mean that the kernel ignored the advice, for example for lack of memory.


def will_need(flat: npt.NDArray[Any], rows: npt.NDArray[np.integer], count: int) -> None:
    """Asks the kernel to read rows in the background, all at once.

    Without this, accessing mapped rows one after the other waits for each of them.

    Args:
        flat: ``[n, D]``, a mapping.
        rows: ``[B]``, the first row of each run.
        count: the number of rows in a run.
    """
    address, row_bytes = int(flat.__array_interface__["data"][0]), flat.strides[0]
    first = address + rows.astype(np.int64) * row_bytes
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    sizes = (first + count * row_bytes - start).tolist()
    for begin, size in zip(start.tolist(), sizes, strict=True):
        _libc.madvise(begin, size, mmap.MADV_WILLNEED)


def _mmap(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    mapped = _libc.mmap(address, size, protection, flags, fd, 0)
    if mapped is None or mapped == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(mapped)


def distance(spec: ArraySpec) -> int:
    """Bytes from the start of one chunk to the start of the next in the mapping of an array.

    A multiple of the size of a row and of a huge page, unless that would more than double the
    address space; then the size of a chunk.
    """
    row_bytes = spec.chunk_bytes // math.prod(spec.chunk_shape[:-1])
    step = math.lcm(_HUGE_PAGE, row_bytes)
    aligned = -(-spec.chunk_bytes // step) * step
    return aligned if aligned <= 2 * spec.chunk_bytes else spec.chunk_bytes


def map_chunks(
    root: Path, spec: ArraySpec, chunks: Iterable[int], advice: Advice = "none"
) -> npt.NDArray[Any]:
    """Maps the given chunks of one array into a single array.

    Args:
        root: the folder of the store.
        spec: the array.
        chunks: the committed chunks. Rows of other chunks must never be accessed: they are not
            mapped, and reading them ends the process.
        advice: how the kernel fetches the files, one of ``ADVICE``, but not ``auto``.

    Returns:
        ``dtype [chunks, rows per chunk, ...]``, read-only; each chunk is contiguous, and
        :func:`distance` returns the bytes between chunks. The mapping exists as long as any view of
        it does.

    Raises:
        CorruptStoreError: a chunk's file is missing or has another size.
        StorageError: a file cannot be opened or mapped or, with ``populate``, cannot be read.
        ConfigError: this machine's memory pages are larger than the alignment of the chunks.
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
        # A string, because joining paths would take a third of the time of opening a store.
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
    """Reserves addresses from a multiple of the huge page size on; returns owner and address."""
    whole = size + _HUGE_PAGE
    start = _mmap(None, whole, _PROT_NONE, _MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
    base = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    # A subclass, because plain ctypes arrays do not support weak references.
    buffer_type: Any = type("MappedChunks", (ctypes.c_uint8 * size,), {})
    buffer = buffer_type.from_address(base)
    # NumPy's array keeps the buffer alive, and the buffer's finalizer unmaps the range. It does not
    # run at exit: other threads may still be reading, and the kernel unmaps anyway.
    weakref.finalize(buffer, _libc.munmap, start, whole).atexit = False
    return buffer, base


def _map_chunk(path: str, spec: ArraySpec, chunk: int, address: int) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as e:
        if is_absent(e):
            raise not_there(spec.file(chunk), e, chunk) from None
        raise refusal(Path(path), e) from e
    try:
        # Reading past the end of a shorter file would raise SIGBUS.
        require_size(spec, chunk, os.fstat(fd).st_size)
        _mmap(address, spec.chunk_bytes, _PROT_READ, _MAP_SHARED | _MAP_FIXED, fd)
    except OSError as e:  # ENODEV if the file system cannot map files
        raise refusal(Path(path), e) from e
    finally:
        os.close(fd)


def require_size(spec: ArraySpec, chunk: int, size: int) -> None:
    """Refuses a chunk whose file has another size in bytes than its rows and checksum take."""
    expected = spec.chunk_bytes + CHECKSUM_BYTES
    if size != expected:
        raise CorruptStoreError(spec.file(chunk), f"{size} bytes, expected {expected}", chunk=chunk)
