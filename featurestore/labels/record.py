"""The record of a folder of label files: their digests, which every reader compares."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.storage.digests import read_record
from featurestore.storage.store import record_crc32c
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.digests import compare_files
from featurestore.verify.findings import Finding

REDO = "Write the labels from the same data folder as the embeddings: manyviews labels"


def label_record(facts: Mapping[str, Any], contents: Mapping[str, Sequence[bytes]]) -> bytes:
    """The record of digests for label files that are about to be written.

    Args:
        facts: the first fields of the record.
        contents: the parts of each file's content, by file name.
    """
    record: dict[str, object] = {
        **facts,
        "sha256": {n: hashlib.sha256(b"".join(parts)).hexdigest() for n, parts in contents.items()},
    }
    record["crc32c"] = record_crc32c(record)
    return (json.dumps(record, indent=2) + "\n").encode("ascii")


def recorded_digests(record: Path) -> dict[str, str]:
    """The recorded digest of each label file; empty without a record.

    Raises:
        ValueError: the record is damaged.
        StorageError: the record cannot be read.
    """
    try:
        return dict(read_record(record)["sha256"])
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError) as e:
        raise ValueError(str(e)) from e


def require_recorded(record: Path, name: str, content: bytes | mmap.mmap) -> None:
    """Refuses the content of a label file that differs from the record; accepts any without one.

    Args:
        record: the record's file.
        name: the name of the label file beside it.
        content: the label file's content.

    Raises:
        InputError: the digest differs from that of the record, or the record is damaged.
    """
    try:
        digests = recorded_digests(record)
    except ValueError as e:
        raise InputError(
            f"{record} is not the record that `labels` wrote: {str(e)[:200]}\n{REDO}"
        ) from e
    if not digests:
        return
    digest = hashlib.sha256(content).hexdigest()
    if digest != digests.get(name):
        raise InputError(
            f"{record.parent / name} is not what `labels` wrote: expected SHA-256 "
            f"{str(digests.get(name))[:16]}…, found {digest[:16]}….\n{REDO}\n"
            f"If it was changed on purpose, remove {record}."
        )


def read_recorded(record: Path, name: str) -> bytes:
    """The content of a small label file, compared with the record as :func:`require_recorded` does.

    Args:
        record: the record's file.
        name: the name of the label file beside it.

    Raises:
        InputError: the file is missing, its digest differs, or the record is damaged.
        StorageError: the file cannot be read.
    """
    path = record.parent / name
    try:
        content = path.read_bytes()
    except OSError as e:
        if is_absent(e):
            raise InputError(f"Could not read {path}: {e.strerror or e}\n{REDO}") from e
        raise refusal(path, e) from e
    require_recorded(record, name, content)
    return content


def verify_record(
    record: Path, *, checked: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compares label files with their record; returns no findings if there is no record.

    Args:
        record: the record's file.
        checked: called with the name of each file that is checked.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        digests = recorded_digests(record)
    except ValueError as e:
        checked(record.name)
        return [Finding(record.name, None, f"no record of label files: {e}")]
    if not digests:
        return []
    checked(record.name)
    return compare_files(record.parent, digests, checked)
