"""Disk space: the size of a store, the bytes still to be written, and the free bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

from featurestore.errors import StorageFullError
from featurestore.records import Sample
from featurestore.samples import SampleList
from featurestore.storage.shape import ArraySpec, StoreSpec
from featurestore.storage.store import is_store
from featurestore.system.durable import target_name
from featurestore.system.refusals import is_absent, refusal, status_of

# Bytes per sample: two digests and a count in the ledger, two sizes and times in the input cache.
_SAMPLE_RECORD_BYTES = 2 * 68 + 8 + 70


def free_bytes(path: Path) -> int | None:
    """Free bytes of the file system that holds ``path`` or its nearest existing parent.

    None if the file system reports no size, as some network and FUSE file systems do.

    Raises:
        StorageError: the system refused the query.
    """
    try:
        usage = shutil.disk_usage(nearest_existing(path))
    except OSError as e:
        if e.errno == errno.ENOSYS:
            return None
        raise refusal(path, e) from e
    return usage.free if usage.total else None


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    path = path.absolute()
    while status_of(path) is None:
        path = path.parent
    return path


def store_bytes(spec: StoreSpec, samples: Sequence[Sample]) -> int:
    """Size of a complete store in bytes: exact for the arrays, an estimate for the records.

    Compressed chunks are counted with their uncompressed size.
    """
    arrays = sum(array.chunks * array.file_bytes for array in _arrays(spec))
    return arrays + _records_bytes(spec, range(spec.chunks)) + _document_bytes(spec, samples)


def missing_bytes(
    spec: StoreSpec, samples: Sequence[Sample], root: Path, done: Container[int]
) -> int:
    """Additional bytes on disk that completing a store takes.

    Args:
        spec: the store's shape.
        samples: its samples.
        root: its folder, which need not exist.
        done: the committed chunks. Files of other chunks, left by a killed build, are overwritten,
            so that their current size is subtracted.
    """
    missing = [chunk for chunk in range(spec.chunks) if chunk not in done]
    if not missing:
        return 0
    needed = _records_bytes(spec, missing)
    if not is_store(root):
        needed += _document_bytes(spec, samples)
    for array in _arrays(spec):
        existing = _sizes(root / array.name)
        for chunk in missing:
            held = existing[array.file(chunk).rpartition("/")[2]]
            needed += max(0, array.file_bytes - held)
    return needed


def require_space(store: Path, needed: int, freed: int = 0) -> None:
    """Refuses a build that does not fit on the file system, before anything is written.

    Args:
        store: the path of the store.
        needed: the number of bytes that the build writes.
        freed: the number of bytes that the build deletes first.

    Raises:
        StorageFullError: the file system has fewer free bytes.
    """
    free = free_bytes(store)
    if free is None or needed <= free + freed:
        return
    also = f", and {freed:,} in what would be deleted" if freed else ""
    raise StorageFullError(
        store,
        needed,
        f"its file system has {free:,} free{also}",
        "Free some space, choose another --store, or ask for fewer --views or --features.",
    )


def folder_bytes(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(folder_bytes(Path(entry.path)) for entry in os.scandir(path))


def _arrays(spec: StoreSpec) -> list[ArraySpec]:
    return [array for name in spec.dims for array in (spec.feature(name), spec.moments(name))]


def _records_bytes(spec: StoreSpec, chunks: Sequence[int]) -> int:
    samples = sum(len(spec.samples_of(chunk)) for chunk in chunks)
    return samples * _SAMPLE_RECORD_BYTES + len(chunks) * (80 + 120 * len(spec.dims))


def _document_bytes(spec: StoreSpec, samples: Sequence[Sample]) -> int:
    return len(SampleList.of(samples).lines) + 2048 + 2 * 700 * len(spec.dims)


def _sizes(folder: Path) -> Counter[str]:
    """Bytes that each file in a folder takes, with its temporary files; empty without a folder."""
    sizes: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                sizes[target_name(entry.name)] += entry.stat(follow_symlinks=False).st_size
    except OSError as e:
        if is_absent(e):
            return sizes
        raise refusal(folder, e) from e
    return sizes
