"""Whether the inputs of committed samples are still what they were.

The ledger holds the SHA-256 of every input. To read them all again would take as long as the data
set is large, so sizes and modification times are kept beside the logs, and only a file in which one
of them differs is read. The cache decides nothing: without it everything is read.
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
# The same of every sample, int64 ``[N, 4]``.
InputStats = npt.NDArray[np.int64]

_MISSING = (-1, -1)
_UNKNOWN = (-2, -2, -2, -2)  # like nothing that ``stat_inputs`` says


def stat_inputs(found: Scan) -> InputStats:
    """What the file system says of every sample's inputs, in the order of the samples.

    Taken before anything is read: a file that changes in between then differs from what is kept.
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
    """What was found of one sample."""
    image_size, image_time, text_size, text_time = stats[index].tolist()
    return image_size, image_time, text_size, text_time


def _stat(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each of 50,000 files takes longer
    except OSError:
        return _MISSING
    # Nanoseconds do not fit from the year 2262 on: what counts is that other times look different.
    return status.st_size, (status.st_mtime_ns + 2**63) % 2**64 - 2**63


def read_cache(path: Path) -> dict[int, InputStat]:
    """The kept sizes and times by sample; empty where there are none that can be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    cached: dict[int, InputStat] = {}
    for line in lines:
        # A torn line says nothing: what it would have said is found by reading again.
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            for index, *values in json.loads(line):
                image_size, image_time, text_size, text_time = map(int, values)
                cached[int(index)] = (image_size, image_time, text_size, text_time)
    return cached


def extend_cache(path: Path, stats: Mapping[int, InputStat]) -> None:
    """Keeps sizes and times of more samples; later ones replace earlier ones.

    A store without a folder for them, as that of a trial, has none.
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
    mended: bool = False,
) -> tuple[dict[int, list[str]], dict[int, InputStat]]:
    """Names of inputs of committed samples that are not what was read for them.

    Args:
        found: the data folder now.
        records: the committed samples.
        stats: what :func:`stat_inputs` says now.
        cached: what :func:`read_cache` says; empty to read everything.
        mended: name those inputs as well that could not be read then, and can be now; and those
            that ended their producer, where the file looks different. They have no content to
            compare.

    Returns:
        File names by sample, in order, and the sizes and times to keep of those samples whose
        inputs were read and found unchanged.

    Raises:
        StorageError: an input whose content is known cannot be read, so nobody can tell.
    """
    changed: dict[int, list[str]] = {}
    confirmed: dict[int, InputStat] = {}
    for record in records:
        now, kept = stat_of(stats, record.index), cached.get(record.index, _UNKNOWN)
        unread, ended = (
            {bad.modality for bad in record.bad if mended and bad.reason in reasons}
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
    """Of a file's content, or empty where it cannot be read.

    Raises:
        StorageError: nobody can tell whether what ``was_read`` is still the same.
    """
    try:
        return hashlib.sha256(source.read_capped(path, cap_bytes)).hexdigest()
    except BadSampleError as e:
        refused = machine_error(e.__cause__)
        if was_read and refused is not None and e.reason == "unreadable":
            raise refusal(path, refused) from e
        return ""
