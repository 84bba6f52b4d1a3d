"""Memory for large results, used again once nobody has them any more.

A batch of all views is tens of megabytes. The allocator takes as much from the kernel each time,
which fills it with zeros, page by page, as it is written to: that takes as long as the copy itself.
Smaller ones it keeps itself, and there is nothing to be gained.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

# Where glibc's malloc stops to keep memory, at the most (DEFAULT_MMAP_THRESHOLD_MAX).
_LEAST_BYTES = 32 << 20
# Kept for the next batches, in all.
_KEPT_BYTES = 256 << 20

# The oldest first. Without a lock: memory comes back in whatever thread, and at any instruction,
# where the last reference is dropped. Each call on a list is whole.
_free: list[mmap.mmap] = []


def empty(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array of float32 whose values are anything, as ``numpy.empty``."""
    if not is_large(shape):
        return np.empty(shape, np.float32)
    size = _bytes_of(shape)
    memory = _kept(size) or _fresh(size)
    holder = _holder(size).from_buffer(memory)
    # Every view of the array, and every tensor made of it, keeps the holder. A view's base is not
    # the array that it was taken from, so the array's own end would be too early.
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
            with suppress(ValueError):  # another thread was quicker
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
    # A subclass, because plain ctypes arrays take no weak reference.
    return type("Result", (ctypes.c_uint8 * size,), {})


def _give_back(memory: mmap.mmap) -> None:
    _free.append(memory)
    while sum(map(len, _free)) > _KEPT_BYTES:
        with suppress(IndexError):
            _free.pop(0)
