"""All rows of one feature, read for training from a store or from materialized files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptStoreError, InputError
from featurestore.reading.blocks import Blocks, ChunkedBlocks, MappedBlocks, default_cache_bytes
from featurestore.reading.chunk_files import ChunkFiles
from featurestore.reading.mapping import Advice, advise, map_chunks, resolved
from featurestore.reading.npy import map_npy
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.sequential import FilesInOrder
from featurestore.reading.views import View
from featurestore.storage.codecs import REWRITTEN
from featurestore.storage.moments import Scale
from featurestore.storage.shape import ArraySpec
from featurestore.storage.store import FeatureStore
from featurestore.system.contents import size_of
from featurestore.system.platforms import ON_LINUX

# Number of samples to read at once for the mean of all views: a few MB.
_MEAN_BLOCK = 32


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """The rows of a feature, mapped from disk and scaled when they are read.

    Attributes:
        source: the mapped files, or decoded chunks if the array cannot be mapped.
        samples: the number of samples, N.
        views: the number of views per sample, V.
        dim: the number of dimensions, D.
        scale: the scale applied to rows after reading, or None.
        reopen: a function and its arguments that reopen these rows in another process.
        committed: whether each sample is committed, bool ``[N]``; None if all are.
        present: whether each sample has the feature's input, bool ``[N]``; None if all have it. The
            rows of the others are zeros, which are not scaled.
    """

    source: Blocks
    samples: int
    views: int
    dim: int
    scale: Scale | None
    reopen: tuple[Callable[..., FeatureRows], tuple[Any, ...]]
    committed: npt.NDArray[np.bool_] | None = None
    present: npt.NDArray[np.bool_] | None = None

    def __reduce__(self) -> tuple[Callable[..., FeatureRows], tuple[Any, ...]]:
        # A pickle must hold the location of the rows, not gigabytes of rows.
        return self.reopen

    def take(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[np.float32]:
        """Reads rows; the result is a copy.

        Args:
            samples: int64 ``[B]``, from 0.
            view: one view's number for all samples, int64 ``[B]`` or ``[B, 2]`` numbers, ``all``,
                or ``mean``, the mean over all views after scaling.

        Returns:
            float32 ``[B, D]``; ``[B, 2, D]`` for two views each, ``[B, V, D]`` for ``all``.

        Raises:
            IndexError: a sample or a view does not exist.
            InputError: a sample was not committed when a growing store was opened.
            CorruptStoreError: a decoded chunk is damaged.
        """
        if self.committed is not None and not self.committed[samples].all():
            raise InputError("These samples were not committed yet when the store was opened.")
        rows = self._scaled(samples, view)
        if self.present is not None:
            rows[~self.present[samples]] = 0
        return rows

    def _scaled(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[np.float32]:
        if not isinstance(view, str):
            return self.source.take(samples, view, self.scale)
        if view == "all":
            return self.source.take(samples, None, self.scale)
        out = np.empty((len(samples), self.dim), np.float32)
        for start in range(0, len(samples), _MEAN_BLOCK):
            part = slice(start, start + _MEAN_BLOCK)
            self.source.take(samples[part], None, self.scale).mean(axis=1, out=out[part])
        return out


def store_rows(
    store: FeatureStore,
    feature: str,
    scale: Scale | None,
    *,
    advice: Advice = "auto",
    chunks: Sequence[int] | None = None,
) -> FeatureRows:
    """The rows of one feature of a store.

    Args:
        store: a complete store; with ``chunks``, it may be incomplete.
        feature: one of its features.
        scale: the scale to apply to rows after reading, or None.
        advice: how the kernel fetches the files, see ``mapping.choose_advice``.
        chunks: the committed chunks to read; all of a complete store by default.

    Raises:
        InputError: the store is not complete.
        CorruptStoreError: a chunk's file is missing or has another size.
        StorageError: a file cannot be read.
    """
    reopen = (_reopen_store_rows, (store.path, feature, scale, advice, chunks))
    committed = None
    if chunks is None:
        store.require_complete()
        chunks = range(store.spec.chunks)
    else:
        committed = store.committed(chunks)
    spec, array = store.spec, store.array(feature)
    n, v, d = array.shape
    if array.codec != REWRITTEN:  # the files of a rewritten array have other lengths
        _require_lengths(store, feature, chunks)
    source: Blocks
    if not array.is_mappable:
        read = partial(store.read_chunk, feature)
        source = ChunkedBlocks(read, (n, v, d), spec.chunk, default_cache_bytes())
    elif not ON_LINUX:
        files = ChunkFiles(store.path, array, chunks)
        source = ChunkedBlocks(files.read, (n, v, d), spec.chunk, files.kept_bytes)
    else:
        source = _mapped(store, array, chunks, advice, whole=committed is None)
    return FeatureRows(source, n, v, d, scale, reopen, committed, _if_any_lacks(store, feature))


def _if_any_lacks(source: FeatureStore | NpyFolder, feature: str) -> npt.NDArray[np.bool_] | None:
    """Whether each sample has a feature's input, bool ``[N]``; None if all have it."""
    present = source.present(feature)
    return None if present.all() else present


def _mapped(
    store: FeatureStore, array: ArraySpec, chunks: Sequence[int], advice: Advice, *, whole: bool
) -> MappedBlocks:
    """The rows in one mapping; ``whole`` if it holds every chunk."""
    files = [f"{store.path}/{array.file(chunk)}" for chunk in chunks]
    advice = resolved(advice, files, len(files) * array.chunk_bytes)
    mapped = map_chunks(store.path, array, chunks, advice)
    in_order = None
    if advice == "random" and whole:
        in_order = FilesInOrder(files, store.spec.chunk)
    return MappedBlocks(mapped, array.shape[0], from_disk=advice == "random", files=in_order)


def _require_lengths(store: FeatureStore, feature: str, chunks: Sequence[int]) -> None:
    """Raises CorruptStoreError if the length of a file differs from the ledger."""
    array = store.array(feature)
    for chunk in chunks:
        file = array.file(chunk)
        committed, _ = store.ledger[chunk].files.get(file, (None, 0))
        size = array.file_bytes if array.is_mappable else size_of(store.path, file, chunk)
        if size != committed:
            problem = f"{size} bytes, and {committed} were committed"
            raise CorruptStoreError(file, problem, chunk=chunk)


def _reopen_store_rows(
    path: Path, feature: str, scale: Scale | None, advice: Advice, chunks: Sequence[int] | None
) -> FeatureRows:
    return store_rows(FeatureStore(path), feature, scale, advice=advice, chunks=chunks)


def npy_rows(folder: Path, prefix: str, feature: str, *, advice: Advice = "auto") -> FeatureRows:
    """The rows of one materialized feature, unscaled: the file already holds scaled rows.

    Raises:
        InputError: the file or the manifest is missing, or they do not match.
        StorageError: the file cannot be read.
    """
    source = NpyFolder(folder, prefix)
    spec, present = source.spec, _if_any_lacks(source, feature)
    path = folder / f"{prefix}_{feature}.npy"
    flat = map_npy(path)
    if flat.ndim != 2 or flat.dtype != np.float32 or len(flat) != spec.samples * spec.views:
        raise InputError(
            f"{path} holds {flat.dtype} {flat.shape}; its manifest states {spec.samples} samples "
            f"with {spec.views} views.\nRun `materialize` again."
        )
    advice = resolved(advice, [path], flat.nbytes)
    advise(flat, advice, path)
    reopen = (partial(npy_rows, advice=advice), (folder, prefix, feature))
    # A plain array, because indexing a memmap returns copies as memmaps.
    blocks = np.asarray(flat).reshape(1, spec.samples, spec.views, flat.shape[1])
    mapped = MappedBlocks(blocks, spec.samples, from_disk=advice == "random")
    shape = (spec.samples, spec.views, flat.shape[1])
    return FeatureRows(mapped, *shape, None, reopen, present=present)
