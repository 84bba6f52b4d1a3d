"""Checks whether the inputs of committed samples have changed.

The ledger holds the SHA-256 of every input. Reading all inputs again takes long for a large data
set, so sizes and modification times are cached beside the logs, and a file is read only if one of
them differs. The cache is an optimisation only: without it all files are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from featurestore.errors import BadSampleError
from featurestore.records import Modality, Sample, SampleRecord
from featurestore.system import durable
from featurestore.system.refusals import machine_error, refusal
from producers.sources.collection import GENERIC
from producers.sources.files import ENDED, UNREADABLE
from producers.sources.scan import Inputs, InputStats, Scan

# One row of ``InputStats``.
InputStat = tuple[int, int, int, int]

_UNKNOWN = (-2, -2, -2, -2)  # different from every result of ``stat_inputs``


def stat_inputs(found: Scan) -> InputStats:
    """What ``Places.stats`` says of every sample, for the mapping of the collection.

    Must be called before any input is read: the stats of a file that changes afterwards then differ
    from the cached ones.
    """
    stats = found.places.stats()
    if found.collection.preset == GENERIC:
        # Unchanged files must be read again if other columns or members are taken from them.
        stats[:, 1::2] ^= int(found.collection.mapping_sha256[:15], 16)
    return stats


def stat_of(stats: InputStats, index: int) -> InputStat:
    """Bytes and modification times of the image and the text of sample ``index``, in turn."""
    image_size, image_time, text_size, text_time = stats[index].tolist()
    return image_size, image_time, text_size, text_time


def read_caches(folder: Path) -> dict[int, InputStat]:
    """The cached sizes and times by sample index, of all caches ``inputs*.jsonl`` in a folder.

    Every process that builds chunks has its own. Those that cannot be read are left out.
    """
    cached: dict[int, InputStat] = {}
    with suppress(OSError):
        for path in sorted(folder.glob("inputs*.jsonl"), key=lambda p: p.stat().st_mtime_ns):
            cached |= read_cache(path)
    return cached


def read_cache(path: Path) -> dict[int, InputStat]:
    """The sizes and times in one cache, by sample index; empty if it cannot be read."""
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
        cached: the result of :func:`read_caches`; empty to read all inputs.
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
    inputs = Inputs(found)
    for record in records:
        now, kept = stat_of(stats, record.index), cached.get(record.index, _UNKNOWN)
        unread, ended = (
            {bad.modality for bad in record.bad if repaired and bad.reason in reasons}
            for reasons in (UNREADABLE, ENDED)
        )
        if now == kept and not unread:
            continue
        sample = found.samples[record.index]
        names = []
        parts: tuple[tuple[Modality, str | None, bool], ...] = (
            ("image", record.image_sha256, now[:2] == kept[:2]),
            ("text", record.text_sha256, now[2:] == kept[2:]),
        )
        for name, (modality, digest, looks_the_same) in zip(
            found.places.names(sample), parts, strict=True
        ):
            if digest or digest is None:
                is_changed = (
                    not looks_the_same
                    and _sha256(inputs, found, sample, modality, was_read=True) != digest
                )
            else:
                is_changed = modality in unread and bool(_sha256(inputs, found, sample, modality))
                is_changed |= modality in ended and not looks_the_same
            if is_changed:
                names.append(name)
        if names:
            changed[record.index] = names
        else:
            confirmed[record.index] = now
    return changed, confirmed


def sha256_of(inputs: Inputs, sample: Sample, modality: Modality) -> str | None:
    """Hex digest of one of a sample's inputs, as the ledger records it; None if it has none.

    Raises:
        BadSampleError: the input cannot be read.
    """
    if modality == "image":
        data = inputs.image(sample)
        return None if data is None else hashlib.sha256(data).hexdigest()
    texts = inputs.texts(sample)
    return None if texts is None else texts.sha256


def _sha256(
    inputs: Inputs, found: Scan, sample: Sample, modality: Modality, *, was_read: bool = False
) -> str | None:
    """As :func:`sha256_of`; empty if the input cannot be read.

    Args:
        inputs: reads the inputs.
        found: the collection.
        sample: the sample.
        modality: which of its inputs.
        was_read: whether the store knows the input's digest, or that the sample has none.

    Raises:
        StorageError: the input ``was_read`` before and now fails with an error of the machine.
    """
    try:
        return sha256_of(inputs, sample, modality)
    except BadSampleError as e:
        refused = machine_error(e.__cause__)
        if was_read and refused is not None and e.reason == "unreadable":
            name = found.places.names(sample)[modality == "text"]
            raise refusal(found.path / name, refused) from e
        return ""
