"""Files of a data folder that are byte for byte the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featurestore.errors import BadSampleError
from featurestore.records import Sample
from producers.sources import source
from producers.sources.source import Scan

# Reading waits for the disk, and hashing lets other threads run.
_THREADS = 8


def duplicate_posters(found: Scan) -> list[list[Sample]]:
    """Groups of samples whose posters have the same bytes, in the order of the samples."""
    return _duplicates(found, source.image_path, source.MAX_IMAGE_BYTES)


def duplicate_synopses(found: Scan) -> list[list[Sample]]:
    """Groups of samples whose synopses have the same bytes, in the order of the samples."""
    return _duplicates(found, source.text_path, source.MAX_TEXT_BYTES)


def _duplicates(
    found: Scan, path_of: Callable[[Path, Sample], Path], cap_bytes: int
) -> list[list[Sample]]:
    """Only files that share their size with another are read."""

    def size(sample: Sample) -> int:
        try:
            return path_of(found.data_dir, sample).stat().st_size
        except OSError:
            return 0

    def digest(sample: Sample) -> bytes:
        try:
            data = source.read_capped(path_of(found.data_dir, sample), cap_bytes)
        except BadSampleError:
            return b""
        return hashlib.sha256(data).digest()

    with ThreadPoolExecutor(_THREADS) as threads:
        # Empty files are bad inputs, and counted as such.
        sizes = _groups(found.samples, threads.map(size, found.samples), empty=0)
        suspects = [sample for group in sizes for sample in group]
        return _groups(suspects, threads.map(digest, suspects), empty=b"")


def _groups(
    samples: Sequence[Sample], keys: Iterable[object], *, empty: object
) -> list[list[Sample]]:
    """Samples of equal keys, where there are at least two; ``empty`` equals nothing."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for sample, key in zip(samples, keys, strict=True):
        if key != empty:
            groups[key].append(sample)
    shared = [group for group in groups.values() if len(group) > 1]
    return sorted(shared, key=lambda group: group[0].index)
