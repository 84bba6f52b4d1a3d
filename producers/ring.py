"""The bounded queue between producers and backbones: slots of shared memory, filled in place.

One sample's views are 10.5 MB of pixels. Pickled through a pipe they cost 45-80 ms of CPU per
sample; written once into a slot that both sides map, only a slot number travels.

The memory is an anonymous file (``memfd_create``): it has no name that could outlive the build,
not even one that was killed, and the size of /dev/shm does not limit it. It is reserved in full
when the ring is made, because touching shared memory that is not there ends a process with SIGBUS.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.memory import available_bytes
from producers.image_views import ImageSpec

_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class SlotArrays:
    """The arrays of one slot; views into shared memory, valid until the slot is released.

    Attributes:
        stage: uint8 ``[1]``, what the producer is working on: 0 nothing, 1 image, 2 text.
        augmented: per side S uint8 ``[V-1, S, S, 3]``, shared by all backbones of that size.
        clean: per image specification uint8 ``[S, S, 3]``.
        ids: per text specification int32 ``[V, max_length]``.
        lengths: per text specification int32 ``[V]``.
    """

    stage: npt.NDArray[np.uint8]
    augmented: dict[int, npt.NDArray[np.uint8]]
    clean: dict[ImageSpec, npt.NDArray[np.uint8]]
    ids: list[npt.NDArray[np.int32]]
    lengths: list[npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """What a slot holds, and where; the same on both sides.

    Attributes:
        views: V, the clean view included.
        images: the image specifications, each once.
        text_lengths: ``max_length`` of each text specification.
    """

    views: int
    images: tuple[ImageSpec, ...]
    text_lengths: tuple[int, ...]

    def _fields(self) -> list[tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and dtype of each array, in the order in which they lie in the slot."""
        fields: list[tuple[tuple[int, ...], type[np.generic]]] = [((1,), np.uint8)]
        fields += [((self.views - 1, s, s, 3), np.uint8) for s in self.sizes]
        fields += [((i.size, i.size, 3), np.uint8) for i in self.images]
        fields += [((self.views, length), np.int32) for length in self.text_lengths]
        fields += [((self.views,), np.int32) for _ in self.text_lengths]
        return fields

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the augmented views, each once."""
        return tuple(sorted({image.size for image in self.images}))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot, whole pages."""
        total = sum(_aligned(_size(*f)) for f in self._fields())
        return -(-total // mmap.PAGESIZE) * mmap.PAGESIZE

    def arrays(self, buffer: memoryview) -> SlotArrays:
        """The arrays of the slot that ``buffer`` is."""
        found: list[npt.NDArray[Any]] = []
        offset = 0
        for shape, dtype in self._fields():
            flat = np.frombuffer(buffer, dtype, math.prod(shape), offset)
            found.append(flat.reshape(shape))
            offset += _aligned(_size(shape, dtype))
        rest = iter(found)
        return SlotArrays(
            stage=next(rest),
            augmented={size: next(rest) for size in self.sizes},
            clean={image: next(rest) for image in self.images},
            ids=[next(rest) for _ in self.text_lengths],
            lengths=[next(rest) for _ in self.text_lengths],
        )


def _size(shape: Sequence[int], dtype: type[np.generic]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGN_BYTES) * _ALIGN_BYTES


class Ring:
    """``slots`` slots of one layout in anonymous shared memory.

    Attributes:
        fd: the descriptor that producers inherit.
        slots: the arrays of each slot.
    """

    def __init__(self, layout: SlotLayout, slots: int, fd: int | None = None) -> None:
        """Creates the ring, or attaches to the one behind ``fd``.

        Raises:
            ConfigError: the machine has less memory free than the slots need.
        """
        size = layout.slot_bytes * slots
        self.fd = _reserve(layout, slots) if fd is None else fd
        # Only the arrays hold the map, which holds a descriptor of its own: they end together.
        view = memoryview(mmap.mmap(self.fd, size))
        step = layout.slot_bytes
        self.slots = [layout.arrays(view[i * step : (i + 1) * step]) for i in range(slots)]

    def close(self) -> None:
        """Closes the descriptor; the memory goes when the last array into it does."""
        os.close(self.fd)
        self.slots = []


def require_room(layout: SlotLayout, slots: int) -> int:
    """Bytes that ``slots`` slots need.

    Raises:
        ConfigError: the machine has less memory free.
    """
    size, free = layout.slot_bytes * slots, available_bytes()
    if size > free:
        raise ConfigError(_too_small(size, slots, f"{free:,} are free"))
    return size


def _reserve(layout: SlotLayout, slots: int) -> int:
    """Descriptor of a new anonymous file with real memory behind all its slots."""
    size = require_room(layout, slots)
    fd = os.memfd_create("manyviews-ring", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        os.close(fd)
        raise ConfigError(_too_small(size, slots, e.strerror or str(e))) from None
    return fd


def _too_small(size: int, slots: int, found: str) -> str:
    return (
        f"The {slots} slots between producers and backbones need {size:,} bytes of shared memory; "
        f"{found}.\nChoose fewer with --slots (at least 2), or free some memory."
    )
