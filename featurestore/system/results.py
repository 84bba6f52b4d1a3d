"""Memory for large results, which is reused once no array refers to it any more.

A batch of all views is tens of megabytes. The allocator requests such memory from the kernel each
time, and the kernel fills every page with zeros at the first write, which takes as long as the copy
itself. The allocator reuses the memory of smaller results itself.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.system.platforms import ON_LINUX

# glibc's malloc never keeps freed blocks of this size (DEFAULT_MMAP_THRESHOLD_MAX). Other systems
# have other allocators, which decide alone.
_LEAST_BYTES = 32 << 20 if ON_LINUX else sys.maxsize
# Total memory kept for the next batches.
_KEPT_BYTES = 256 << 20

# Free memory, the oldest first. No lock is used, because memory is returned in any thread and at
# any instruction that drops the last reference. Each operation on a list is atomic.
_free: list[mmap.mmap] = []


def empty(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array of float32 with arbitrary values, as ``numpy.empty`` returns it."""
    if not is_large(shape):
        return np.empty(shape, np.float32)
    size = _bytes_of(shape)
    memory = _kept(size) or _fresh(size)
    holder = _holder(size).from_buffer(memory)
    # Every view of the array, and every tensor that shares its memory, refers to the holder. They
    # do not refer to the array itself, so a finalizer of the array would run too early.
    weakref.finalize(holder, _give_back, memory).atexit = False
    return np.frombuffer(holder, np.float32).reshape(shape)


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether the allocator would give the memory of such an array back to the kernel."""
    return _bytes_of(shape) >= _LEAST_BYTES


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def _kept(size: int) -> mmap.mmap | None:
    for memory in reversed(_free.copy()):
        if len(memory) == size:
            with suppress(ValueError):  # another thread took it first
                _free.remove(memory)
                return memory
    return None


def _fresh(size: int) -> mmap.mmap:
    # Private: a forked loader worker must not write into its parent's results.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@functools.lru_cache(maxsize=64)
def _holder(size: int) -> Any:
    # A subclass, because plain ctypes arrays do not support weak references.
    return type("Result", (ctypes.c_uint8 * size,), {})


def _give_back(memory: mmap.mmap) -> None:
    _free.append(memory)
    while sum(map(len, _free)) > _KEPT_BYTES:
        with suppress(IndexError):
            _free.pop(0)
