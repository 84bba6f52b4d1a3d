"""The shape of a store and of its arrays, and how many samples a chunk holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.records import Modality, SampleRecord
from featurestore.samples import present_in
from featurestore.storage.codecs import CODECS, NONE
from featurestore.wording import amount

PAGE_BYTES = 4096
CHECKSUM_BYTES = 4
MOMENTS = "records/moments"
# Default size of a chunk: that of 64 samples of the paper's 70 views.
_CHUNK_ROWS = 4480
_LEAST_CHUNK = 64


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array, chunked along its first axis only.

    Attributes:
        name: the array's folder, relative to the store.
        shape: the array's shape.
        rows: the number of rows of the first axis in a chunk.
        dtype: the data type, ``<f4`` or ``<f8``; the fill value is NaN.
        codec: ``none``, ``zstd``, or ``rewritten`` for an array that was rewritten.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    dtype: str
    codec: str = NONE

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of every chunk; the last one is padded with NaN."""
        return (self.rows, *self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk's payload in bytes; an uncompressed file is four bytes longer."""
        return math.prod(self.chunk_shape) * np.dtype(self.dtype).itemsize

    @property
    def file_bytes(self) -> int:
        """Size of an uncompressed chunk file in bytes."""
        return self.chunk_bytes + CHECKSUM_BYTES

    @property
    def is_mappable(self) -> bool:
        """Whether chunk files hold the payload uncompressed, so that they can be mapped."""
        return self.codec == NONE

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self.rows)

    def file(self, chunk: int) -> str:
        """The path of a chunk's file, relative to the store; all chunks are in one folder."""
        return "/".join((self.name, ".".join(["c", str(chunk), *("0" for _ in self.shape[1:])])))


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """The shape of a store.

    Attributes:
        samples: the number of samples, N.
        views: the number of views per sample, V, the clean one included.
        chunk: the number of samples per chunk, K.
        dims: the number of dimensions, D, by feature, in the order of the build.
        codec: the codec of the features' chunks, ``none`` or ``zstd``.
        modalities: the input that each feature is computed from, ``image`` or ``text``, by feature;
            a feature that is not listed has rows of every sample.
    """

    samples: int
    views: int
    chunk: int
    dims: Mapping[str, int]
    codec: str = NONE
    modalities: Mapping[str, Modality] = field(default_factory=dict)

    def feature(self, name: str) -> ArraySpec:
        """The array of a feature, float32 ``[N, V, D]``."""
        shape = (self.samples, self.views, self.dims[name])
        return ArraySpec(name, shape, self.chunk, "<f4", self.codec)

    def moments(self, name: str) -> ArraySpec:
        """The array of a feature's moments, float64 ``[chunks, 2, D]``."""
        return ArraySpec(f"{MOMENTS}/{name}", (self.chunks, 2, self.dims[name]), 1, "<f8")

    def present(self, name: str, records: Sequence[SampleRecord]) -> npt.NDArray[np.bool_]:
        """Whether each sample has the input of a feature, bool ``[n]``.

        The rows of the others are zeros, and in no moments.
        """
        modality = self.modalities.get(name)
        return np.ones(len(records), bool) if modality is None else present_in(records, modality)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.chunk)

    def samples_of(self, chunk: int) -> range:
        """Indices of the samples of a chunk."""
        return range(chunk * self.chunk, min(self.samples, (chunk + 1) * self.chunk))


def _page_step(views: int, dims: Mapping[str, int]) -> int:
    return max(aligned_rows(views * dim * 4) for dim in dims.values())


def chunk_fits(chunk: int, views: int, dims: Mapping[str, int]) -> bool:
    """Whether chunks of this many samples fill whole pages of memory."""
    return chunk % _page_step(views, dims) == 0


def choose_chunk(asked: int, views: int, dims: Mapping[str, int]) -> int:
    """Samples per chunk: ``asked``, or for 0 about 4,480 rows that fill whole memory pages.

    A default chunk has at least 64 samples: 64 of 70 views, and more if there are fewer views.

    Raises:
        ConfigError: ``asked`` samples do not fill whole memory pages, so training could not map
            the chunks.
    """
    step = _page_step(views, dims)
    if asked == 0:
        # The step is a power of two.
        return max(max(_LEAST_CHUNK, _CHUNK_ROWS // views) // step * step, step)
    if asked % step:
        raise ConfigError(
            f"--chunk {asked} does not fill whole memory pages with {rows_of(views, dims)}: "
            f"use a multiple of {step}."
        )
    return asked


def rows_of(views: int, dims: Mapping[str, int]) -> str:
    """A sample's rows in words: ``10 views (features of 32, 96 and 64 numbers)``."""
    *most, last = (f"{dim:,}" for dim in dims.values())
    numbers = f"{', '.join(most)} and {last}" if most else last
    return f"{amount(views, 'view')} (features of {numbers} numbers)"


def aligned_rows(row_bytes: int) -> int:
    """Smallest number of rows that fills whole pages; chunks must be a multiple of it."""
    return PAGE_BYTES // math.gcd(row_bytes, PAGE_BYTES)


def parse_shape(shape: Mapping[str, Any]) -> StoreSpec:
    """The shape that a store's record states.

    Raises:
        TypeError: a key is missing or unknown.
        ValueError: a value is not that of a store.
    """
    spec = StoreSpec(**shape)
    numbers = (spec.samples, spec.views, spec.chunk, *spec.dims.values())
    if not spec.dims or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"not the shape of a store: {dict(shape)}")
    if not set(spec.modalities) <= set(spec.dims) or not (
        set(spec.modalities.values()) <= set(get_args(Modality))
    ):
        raise ValueError(f"not the modalities of {list(spec.dims)}: {dict(spec.modalities)}")
    if spec.codec not in CODECS:
        raise ValueError(f"codec {spec.codec!r}, known are {', '.join(CODECS)}")
    return spec
