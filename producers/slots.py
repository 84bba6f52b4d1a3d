"""The bounded queue between producers and backbones: slots of shared memory, filled in place.

One sample's views are 10.5 MB of pixels. Pickled through a pipe they cost 45-80 ms of CPU per
sample; written once into a slot that both sides map, only a slot number travels.

The memory is an anonymous file (``memfd_create``): it has no name that could outlive the build,
not even one that was killed, and the size of /dev/shm does not limit it. It is reserved in full
when the ring is made, because touching shared memory that is not there ends a process with SIGBUS.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.system.limits import available_bytes
from featurestore.wording import amount
from producers.recipes.image_views import ImageSpec, Pixels

# No more files can be opened, by this process or by the machine.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_ALIGN_BYTES = 64

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SlotArrays:
    """The arrays of one slot; views into shared memory, valid until the slot is released.

    Attributes:
        views: the W views that are made, a range whose step is 1.
        stage: uint8 ``[1]``, what the producer is working on: 0 nothing, 1 image, 2 text.
        augmented: per side S uint8 ``[A, S, S, 3]``, shared by all backbones of that size; the A
            views but the clean one.
        clean: per image specification uint8 ``[S, S, 3]``; empty where view 0 is not made.
        ids: per text specification int32 ``[W, max_length]``.
        lengths: per text specification int32 ``[W]``.
    """

    views: range
    stage: npt.NDArray[np.uint8]
    augmented: dict[int, Pixels]
    clean: dict[ImageSpec, Pixels]
    ids: list[Ids]
    lengths: list[Ids]

    def images(self, spec: ImageSpec, part: range) -> tuple[Pixels, Pixels]:
        """Some views for an image backbone.

        Args:
            spec: the backbone's specification.
            part: of ``views``, at least one.

        Returns:
            uint8 ``[S, S, 3]``, the first of them, and ``[len(part) - 1, S, S, 3]``, the others.
        """
        augmented = self.augmented[spec.size]
        start, stop = (max(view - max(self.views.start, 1), 0) for view in (part.start, part.stop))
        if part.start == 0:
            return self.clean[spec], augmented[:stop]
        return augmented[start], augmented[start + 1 : stop]

    def texts(self, number: int, part: range) -> tuple[Ids, Ids]:
        """Ids and lengths of some views for the text backbone of this number."""
        rows = slice(part.start - self.views.start, part.stop - self.views.start)
        return self.ids[number][rows], self.lengths[number][rows]


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """What a slot holds, and where; the same on both sides.

    Attributes:
        views: V, the clean view included.
        images: the image specifications, each once.
        text_lengths: ``max_length`` of each text specification.
        first_view: the first of the views that are made, up to V-1.
    """

    views: int
    images: tuple[ImageSpec, ...]
    text_lengths: tuple[int, ...]
    first_view: int = 0

    def _fields(self) -> list[tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and dtype of each array, in the order in which they lie in the slot."""
        made, augmented = self.views - self.first_view, self.views - max(self.first_view, 1)
        fields: list[tuple[tuple[int, ...], type[np.generic]]] = [((1,), np.uint8)]
        fields += [((augmented, s, s, 3), np.uint8) for s in self.sizes]
        fields += [((i.size, i.size, 3), np.uint8) for i in self._clean]
        fields += [((made, length), np.int32) for length in self.text_lengths]
        fields += [((made,), np.int32) for _ in self.text_lengths]
        return fields

    @property
    def _clean(self) -> tuple[ImageSpec, ...]:
        """The specifications of which the clean view is made."""
        return self.images if self.first_view == 0 else ()

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
            views=range(self.first_view, self.views),
            stage=next(rest),
            augmented={size: next(rest) for size in self.sizes},
            clean={image: next(rest) for image in self._clean},
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
        slots: the arrays of each slot that was mapped.
    """

    def __init__(self, layout: SlotLayout, slots: int, fd: int | None = None) -> None:
        """Creates the ring, or attaches to the one behind ``fd``.

        Raises:
            ConfigError: the machine has less memory free than the slots need.
            OSError: no more files can be opened.
        """
        self._layout = layout
        self.fd = _reserve(layout, slots) if fd is None else fd
        self.slots: list[SlotArrays] = []
        try:
            self._map(slots)
        except BaseException:
            if fd is None:
                os.close(self.fd)
            raise

    def slot(self, number: int) -> SlotArrays:
        """The arrays of a slot, also of one that the other side added."""
        if number >= len(self.slots):
            self._map(number + 1 - len(self.slots))
        return self.slots[number]

    def add(self) -> int:
        """Adds a slot; returns its number.

        Raises:
            ConfigError: the machine has less memory free.
        """
        number, step = len(self.slots), self._layout.slot_bytes
        require_room(self._layout, 1)
        try:
            os.posix_fallocate(self.fd, number * step, step)
        except OSError as e:
            raise ConfigError(_too_small(step, 1, e.strerror or str(e))) from None
        self._map(1)
        return number

    def _map(self, slots: int) -> None:
        """Maps the next slots."""
        step, start = self._layout.slot_bytes, len(self.slots)
        size = slots * step
        try:
            # Only the arrays hold the map, which holds a descriptor of its own: they end together.
            view = memoryview(mmap.mmap(self.fd, size, offset=start * step))
        except OSError as e:
            if e.errno in NO_DESCRIPTORS:
                raise
            raise ConfigError(_too_small(size, slots, e.strerror or str(e))) from None
        parts = (view[i * step : (i + 1) * step] for i in range(slots))
        self.slots += [self._layout.arrays(part) for part in parts]

    def close(self) -> None:
        """Closes the descriptor; the memory goes when the last array into it does."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.slots = -1, []


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
        f"{amount(slots, 'slot')} between producers and backbones need {size:,} bytes of shared "
        f"memory; {found}.\nChoose fewer with --slots (at least 2), or free some memory."
    )
