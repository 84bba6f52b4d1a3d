"""The result of scanning a collection: its samples in their order, and where their inputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurestore.errors import StorageError
from featurestore.records import Modality, Sample, stems_sha256
from featurestore.samples import SampleList
from producers.sources.collection import CollectionConfig
from producers.sources.readers import Reader, Texts, open_reader

# Two numbers that change if a sample's image does, such as size in bytes and modification time in
# ns, then two for its texts: int64 ``[N, 4]``.
InputStats = npt.NDArray[np.int64]


class Places(Protocol):
    """Where the inputs of each sample are."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Plain values, from which :func:`producers.sources.readers.open_reader` opens a reader."""

    def where(self, sample: Sample) -> Any:
        """The sample's locator, plain values for that reader."""

    def names(self, sample: Sample) -> tuple[str, str]:
        """What messages call the sample's image, and its texts."""

    def sizes(self, modality: Modality) -> Iterable[int]:
        """The size in bytes of every sample's image or texts; at most 0 if it is unknown."""

    def gone(self) -> bool:
        """Whether the collection was deleted or unmounted since it was scanned."""

    def stats(self) -> InputStats:
        """Numbers that differ if an input may have changed; without reading any input."""


def modalities_of(*, images: bool, texts: bool) -> tuple[Modality, ...]:
    """The modalities of a collection that has images, texts or both, ``image`` before ``text``."""
    both: tuple[tuple[Modality, bool], ...] = (("image", images), ("text", texts))
    return tuple(modality for modality, has in both if has)


@dataclass(frozen=True, slots=True)
class Scan:
    """The contents of a collection, in an order that does not depend on the file system.

    Attributes:
        collection: what was scanned.
        samples: the samples; ``samples[i].index == i``.
        places: where their inputs are.
        modalities: the kinds of inputs that the collection has, ``image`` before ``text``.
        unmatched_images: of a folder, the names of images without the text that they need, sorted.
        unmatched_texts: of a folder, the names of texts without the image that they need, sorted.
        left_out: (name, reason) of every other entry that is not used, sorted: ``suffix``, a file
            of another suffix; ``dotfile``; ``directory``, a subfolder; ``not-a-file``, a FIFO,
            socket or device; ``outside``, a symlink that leaves the folder; ``dangling``, a symlink
            to a missing file; ``shadowed``, a file whose stem has another file of a preferred
            suffix.
        alike: (image, text, difference) of unmatched files whose stems look the same; the
            difference is ``Unicode form`` (NFC, NFD) or ``case``.
        labels: returns each sample's label, in order (a list of strings, a string, an integer, a
            float, or None); None if the collection has no labels.
        splits: returns the name of each sample's part of the split, or None, in order; None if the
            collection has no split.
    """

    collection: CollectionConfig
    samples: SampleList
    places: Places
    modalities: tuple[Modality, ...] = ("image", "text")
    unmatched_images: tuple[str, ...] = ()
    unmatched_texts: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    alike: tuple[tuple[str, str, str], ...] = ()
    labels: Callable[[], Sequence[object]] | None = None
    splits: Callable[[], Sequence[str | None]] | None = None

    @property
    def path(self) -> Path:
        """Path of the collection, as given."""
        return Path(self.collection.path)

    @property
    def stems_sha256(self) -> str:
        """Hex SHA-256 of the ordered ids: the identity of the rows."""
        return stems_sha256(sample.stem for sample in self.samples)


def require_inputs(found: Scan) -> None:
    """Check that the collection was not deleted or unmounted since the scan.

    Raises:
        StorageError: it was.
    """
    if found.places.gone():
        raise StorageError(found.path, "the folder and all its samples are gone")


class Inputs:
    """Reads the inputs of a scanned collection in this process.

    Args:
        found: the collection.
    """

    def __init__(self, found: Scan) -> None:
        self._places = found.places
        self._reader: Reader = open_reader(found.places.source)

    def image(self, sample: Sample) -> bytes | None:
        """The encoded bytes of the sample's image; see :class:`Reader`."""
        return self._reader.image(sample, self._places.where(sample))

    def texts(self, sample: Sample) -> Texts | None:
        """The sample's texts; see :class:`Reader`."""
        return self._reader.texts(sample, self._places.where(sample))
