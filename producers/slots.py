"""The free list of slots between producers and backbones: shared memory that is filled in place.

The views of one sample are 10.5 MB of pixels. Pickling them through a pipe costs 45-80 ms of CPU
per sample; a producer writes them once into a slot that both processes map, and only the number of
the slot is sent.

The memory is an anonymous file (``memfd_create``): it has no name that could outlive a build, even
a killed one, and the size of /dev/shm does not limit it. All of it is reserved at the start,
because an access to shared memory that is not available ends a process with SIGBUS.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.system.limits import available_bytes
from featurestore.wording import amount
from producers.recipes.images.geometry import ImageSpec, Pixels

# Errors when this process or the machine cannot open more files.
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_ALIGN_BYTES = 64

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SlotArrays:
    """The arrays of one slot; views into shared memory, valid until the slot is released.

    Attributes:
        views: the W views to compute, a range with step 1.
        stage: uint8 ``[1]``, the current work of the producer: 0 none, 1 image, 2 text.
        augmented: for each image specification uint8 ``[A, S, S, 3]``, the A views other than view
            0; one array for all of a size if their pixels are shared.
        clean: for each image specification uint8 ``[S, S, 3]``, view 0; empty if view 0 is not
            computed.
        ids: for each text specification int32 ``[W, max_length]``, token ids.
        lengths: for each text specification int32 ``[W]``, number of tokens.
    """

    views: range
    stage: npt.NDArray[np.uint8]
    augmented: dict[ImageSpec, Pixels]
    clean: dict[ImageSpec, Pixels]
    ids: list[Ids]
    lengths: list[Ids]

    def images(self, spec: ImageSpec, part: range) -> tuple[Pixels, Pixels]:
        """Some views for an image backbone.

        Args:
            spec: the backbone's specification.
            part: a part of ``views`` with at least one view.

        Returns:
            The first view, uint8 ``[S, S, 3]``, and the others, ``[len(part) - 1, S, S, 3]``.
        """
        augmented = self.augmented[spec]
        start, stop = (max(view - max(self.views.start, 1), 0) for view in (part.start, part.stop))
        if part.start == 0:
            return self.clean[spec], augmented[:stop]
        return augmented[start], augmented[start + 1 : stop]

    def texts(self, number: int, part: range) -> tuple[Ids, Ids]:
        """Token ids and lengths of some views for the text specification with this number."""
        rows = slice(part.start - self.views.start, part.stop - self.views.start)
        return self.ids[number][rows], self.lengths[number][rows]


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The arrays in a slot and their positions, which producers and the consumer compute alike.

    Attributes:
        views: V, the number of views including the clean view.
        images: the distinct sizes and clean views that the image backbones need.
        text_lengths: ``max_length`` of each text backbone's tokenizer, in tokens.
        first_view: index of the first view to compute, at most V-1; above 0 if views are added to a
            store that has the views before.
        shares_pixels: whether all image backbones of one size share the views other than view 0.
    """

    views: int
    images: tuple[ImageSpec, ...]
    text_lengths: tuple[int, ...]
    first_view: int = 0
    shares_pixels: bool = True

    def _fields(self) -> list[tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and dtype of each array, in the order of the slot."""
        views, augmented = self.views - self.first_view, self.views - max(self.first_view, 1)
        fields: list[tuple[tuple[int, ...], type[np.generic]]] = [((1,), np.uint8)]
        fields += [((augmented, i.size, i.size, 3), np.uint8) for i in self.distinct]
        fields += [((i.size, i.size, 3), np.uint8) for i in self._clean]
        fields += [((views, length), np.int32) for length in self.text_lengths]
        fields += [((views,), np.int32) for _ in self.text_lengths]
        return fields

    @property
    def _clean(self) -> tuple[ImageSpec, ...]:
        """The specifications whose clean view is computed."""
        return self.images if self.first_view == 0 else ()

    @property
    def distinct(self) -> tuple[ImageSpec, ...]:
        """The specifications whose views other than view 0 differ: one of each size if shared."""
        if not self.shares_pixels:
            return self.images
        return tuple({image.size: image for image in reversed(self.images)}.values())

    @property
    def slot_bytes(self) -> int:
        """Size of a slot in bytes, a multiple of the page size."""
        total = sum(_aligned(_size(*f)) for f in self._fields())
        return -(-total // mmap.PAGESIZE) * mmap.PAGESIZE

    def arrays(self, buffer: memoryview) -> SlotArrays:
        """The arrays of the slot with this memory."""
        arrays: list[npt.NDArray[Any]] = []
        offset = 0
        for shape, dtype in self._fields():
            flat = np.frombuffer(buffer, dtype, math.prod(shape), offset)
            arrays.append(flat.reshape(shape))
            offset += _aligned(_size(shape, dtype))
        rest = iter(arrays)
        return SlotArrays(
            views=range(self.first_view, self.views),
            stage=next(rest),
            augmented=self._augmented(rest),
            clean={image: next(rest) for image in self._clean},
            ids=[next(rest) for _ in self.text_lengths],
            lengths=[next(rest) for _ in self.text_lengths],
        )

    def _augmented(self, rest: Iterator[npt.NDArray[Any]]) -> dict[ImageSpec, Pixels]:
        """The array of each specification, given those of the distinct ones."""
        made = {image: next(rest) for image in self.distinct}
        if not self.shares_pixels:
            return made
        by_size = {image.size: array for image, array in made.items()}
        return {image: by_size[image.size] for image in self.images}


def _size(shape: Sequence[int], dtype: type[np.generic]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGN_BYTES) * _ALIGN_BYTES


class Ring:
    """Slots of one layout in anonymous shared memory; ``ProducerPool`` keeps the free ones.

    Attributes:
        fd: descriptor of the memory, which producers inherit.
        slots: the arrays of each mapped slot.
    """

    def __init__(self, layout: SlotLayout, slots: int, fd: int | None = None) -> None:
        """Creates the memory of ``slots`` slots, or maps that of the descriptor ``fd``.

        Raises:
            ConfigError: the slots need more memory than is free.
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
        """The arrays of a slot, which the other process may have added."""
        if number >= len(self.slots):
            self._map(number + 1 - len(self.slots))
        return self.slots[number]

    def add(self) -> int:
        """Adds a slot; returns its number.

        Raises:
            ConfigError: the slot needs more memory than is free.
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
        """Maps the next ``slots`` slots."""
        step, start = self._layout.slot_bytes, len(self.slots)
        size = slots * step
        try:
            # Only the arrays refer to the mapping, so it is closed, with its own descriptor, when
            # the last of them is gone.
            view = memoryview(mmap.mmap(self.fd, size, offset=start * step))
        except OSError as e:
            if e.errno in NO_DESCRIPTORS:
                raise
            raise ConfigError(_too_small(size, slots, e.strerror or str(e))) from None
        parts = (view[i * step : (i + 1) * step] for i in range(slots))
        self.slots += [self._layout.arrays(part) for part in parts]

    def close(self) -> None:
        """Closes the descriptor; the memory is freed with the last array that refers to it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.slots = -1, []


def require_room(layout: SlotLayout, slots: int, free: int | None = None) -> int:
    """Checks that there is memory for ``slots`` slots; returns their size in bytes.

    Args:
        layout: the layout of a slot.
        slots: number of slots.
        free: bytes of memory that are free; None for those available now.

    Raises:
        ConfigError: the slots need more memory than is free.
    """
    size, free = layout.slot_bytes * slots, available_bytes() if free is None else free
    if size > free:
        raise ConfigError(_too_small(size, slots, f"{free:,} are free"))
    return size


def _reserve(layout: SlotLayout, slots: int) -> int:
    """Creates an anonymous file whose slots are all backed by memory; returns its descriptor."""
    size = require_room(layout, slots)
    fd = os.memfd_create("manyviews-ring", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        os.close(fd)
        raise ConfigError(_too_small(size, slots, e.strerror or str(e))) from None
    return fd


def _too_small(size: int, slots: int, problem: str) -> str:
    return (
        f"{amount(slots, 'slot')} between producers and backbones need {size:,} bytes of shared "
        f"memory; {problem}.\nChoose fewer with --slots (at least 2), or free some memory."
    )
