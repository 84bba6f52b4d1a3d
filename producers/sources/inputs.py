"""Checks whether the inputs of committed samples have changed.

The ledger holds the SHA-256 of every input. Reading all inputs again takes long for a large data
set, so sizes and modification times are cached beside the logs, and a file is read only if one of
them differs. The cache is an optimisation only: without it all files are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import BadSampleError
from featurestore.records import SampleRecord
from featurestore.system import durable
from featurestore.system.refusals import machine_error, refusal
from producers.sources import source
from producers.sources.source import Scan

# Size in bytes and modification time in ns of the poster, then of the synopsis.
InputStat = tuple[int, int, int, int]
# The ``InputStat`` of every sample, int64 ``[N, 4]``.
InputStats = npt.NDArray[np.int64]

_MISSING = (-1, -1)
_UNKNOWN = (-2, -2, -2, -2)  # different from every result of ``stat_inputs``


def stat_inputs(found: Scan) -> InputStats:
    """Sizes and modification times of every sample's inputs, in the order of the samples.

    Must be called before any input is read: the stats of a file that changes afterwards then differ
    from the cached ones.
    """
    folder = os.fsencode(found.data_dir) + b"/"
    stats = np.empty((len(found.samples), 4), np.int64)
    for sample in found.samples:
        stats[sample.index] = (
            *_stat(folder + source.name_bytes(sample.image_name)),
            *_stat(folder + source.name_bytes(sample.text_name)),
        )
    return stats


def stat_of(stats: InputStats, index: int) -> InputStat:
    """The stats of one sample."""
    image_size, image_time, text_size, text_time = stats[index].tolist()
    return image_size, image_time, text_size, text_time


def _stat(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each of 50,000 files takes longer
    except OSError:
        return _MISSING
    # From the year 2262 on nanoseconds do not fit into int64; distinct times must stay distinct.
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63


def read_cache(path: Path) -> dict[int, InputStat]:
    """The cached sizes and times by sample index; empty if the cache cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    cached: dict[int, InputStat] = {}
    for line in lines:
        # Torn lines are skipped: their inputs are read again.
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            for index, *values in json.loads(line):
                image_size, image_time, text_size, text_time = map(int, values)
                cached[int(index)] = (image_size, image_time, text_size, text_time)
    return cached


def extend_cache(path: Path, stats: Mapping[int, InputStat]) -> None:
    """Adds sizes and times of samples to the cache; later entries replace earlier ones.

    Does nothing if the cache's folder does not exist, as in the store of a trial.
    """
    if not path.parent.is_dir():
        return
    if not path.exists():
        durable.replace_file(path, b"")
    lines = [[index, *stat] for index, stat in stats.items()]
    durable.append_line(path, json.dumps(lines).encode("ascii"))


def changed_inputs(
    found: Scan,
    records: Iterable[SampleRecord],
    stats: InputStats,
    cached: Mapping[int, InputStat],
    *,
    repaired: bool = False,
) -> tuple[dict[int, list[str]], dict[int, InputStat]]:
    """Finds the inputs of committed samples whose content changed since it was read.

    Args:
        found: the data folder as it is now.
        records: the records of the committed samples.
        stats: the result of :func:`stat_inputs`.
        cached: the result of :func:`read_cache`; empty to read all inputs.
        repaired: whether to include inputs that could not be read then and can be read now, and
            inputs that ended their producer and whose size or time changed. The store has no digest
            of them.

    Returns:
        Names of the changed files by sample index, in order; and the stats of the samples whose
        inputs were read and found unchanged, to be cached.

    Raises:
        StorageError: an input with a recorded digest cannot be read, so it cannot be compared.
    """
    changed: dict[int, list[str]] = {}
    confirmed: dict[int, InputStat] = {}
    for record in records:
        now, kept = stat_of(stats, record.index), cached.get(record.index, _UNKNOWN)
        unread, ended = (
            {bad.modality for bad in record.bad if repaired and bad.reason in reasons}
            for reasons in (source.UNREADABLE, source.ENDED)
        )
        if now == kept and not unread:
            continue
        sample = found.samples[record.index]
        image, text = (
            source.image_path(found.data_dir, sample),
            source.text_path(found.data_dir, sample),
        )
        names = []
        for modality, path, cap, digest, looks_the_same in (
            ("image", image, source.MAX_IMAGE_BYTES, record.image_sha256, now[:2] == kept[:2]),
            ("text", text, source.MAX_TEXT_BYTES, record.text_sha256, now[2:] == kept[2:]),
        ):
            if digest:
                is_changed = not looks_the_same and _sha256(path, cap, was_read=True) != digest
            else:
                is_changed = modality in unread and bool(_sha256(path, cap))
                is_changed |= modality in ended and not looks_the_same
            if is_changed:
                names.append(path.name)
        if names:
            changed[record.index] = names
        else:
            confirmed[record.index] = now
    return changed, confirmed


def _sha256(path: Path, cap_bytes: int, *, was_read: bool = False) -> str:
    """SHA-256 of a file's content, in hexadecimal; empty if the file cannot be read.

    Args:
        path: path of the file.
        cap_bytes: maximum size in bytes.
        was_read: whether the store has a digest of the file.

    Raises:
        StorageError: the file ``was_read`` before and now fails with an error of the machine.
    """
    try:
        return hashlib.sha256(source.read_capped(path, cap_bytes)).hexdigest()
    except BadSampleError as e:
        refused = machine_error(e.__cause__)
        if was_read and refused is not None and e.reason == "unreadable":
            raise refusal(path, refused) from e
        return ""
