"""Reads the clean label files back, and makes sure that they are of the samples in question.

Beside them lies a record of their digests, which every reader compares; the published scripts wrote
none, and there nothing is compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.reading.npy import map_npy
from featurestore.storage.digests import file_sha256, read_record
from featurestore.storage.store import record_crc32c
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.digests import compare_files
from featurestore.verify.findings import Finding
from featurestore.wording import amount

LABELS_FILE = "labels_all_23.npy"
IDS_FILE = "ids_all.txt"
CLASS_NAMES_FILE = "class_names_23.json"
# Not ``*_manifest.json``: labels may lie beside embeddings, whose manifests are found by that.
RECORD_FILE = "labels_all_23.digests.json"

REDO = "Make the labels from the same data folder as the embeddings: manyviews labels"


def label_record(samples: int, contents: Mapping[str, Sequence[bytes]]) -> bytes:
    """The record of label files that are about to be written.

    Args:
        samples: rows of labels.
        contents: the parts of each file, by its name.
    """
    record: dict[str, object] = {
        "samples": samples,
        "sha256": {n: hashlib.sha256(b"".join(parts)).hexdigest() for n, parts in contents.items()},
    }
    record["crc32c"] = record_crc32c(record)
    return (json.dumps(record, indent=2) + "\n").encode("ascii")


def _digests(labels_dir: Path) -> Mapping[str, str]:
    """The recorded digest of each label file; empty where the published scripts wrote them.

    Raises:
        InputError: the record is not what was written.
        StorageError: it cannot be read.
    """
    path = labels_dir / RECORD_FILE
    try:
        return dict(read_record(path)["sha256"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{path} is not the record that `labels` wrote: {str(e)[:200]}\n{REDO}"
        ) from e


def _require_recorded(labels_dir: Path, name: str) -> None:
    """Refuses a label file that is not what was written; one that nobody recorded may be anything.

    Raises:
        InputError: its digest is not that of the record.
    """
    digests = _digests(labels_dir)
    if not digests:
        return
    found = file_sha256(labels_dir / name)
    if found != digests.get(name):
        raise InputError(
            f"{labels_dir / name} is not what `labels` wrote: expected SHA-256 "
            f"{str(digests.get(name))[:16]}…, found {found[:16]}….\n{REDO}\n"
            f"Where it was changed on purpose, remove {labels_dir / RECORD_FILE}."
        )


def verify_labels(
    labels_dir: Path, *, checked: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Checks clean label files against their record; nothing is found where there is no record.

    Args:
        labels_dir: the folder.
        checked: called with the name of each file that is checked.

    Raises:
        StorageError: a file cannot be read, so nobody can tell.
    """
    try:
        digests = dict(read_record(labels_dir / RECORD_FILE)["sha256"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as e:
        checked(RECORD_FILE)
        return [Finding(RECORD_FILE, None, f"no record of label files: {e}")]
    checked(RECORD_FILE)
    return compare_files(labels_dir, digests, checked)


def read_labels(labels_dir: Path, stems: Sequence[str]) -> NDArray[np.float32]:
    """Loads the clean labels of exactly these samples.

    Args:
        labels_dir: holds ``labels_all_23.npy`` and ``ids_all.txt``.
        stems: the stems that the rows must stand for, in order.

    Returns:
        float32 [N, 23].

    Raises:
        InputError: a file is missing or damaged, or belongs to other samples or another order.
    """
    found = read_ids(labels_dir)
    if found != list(stems):
        raise InputError(f"{labels_dir / IDS_FILE} {_first_difference(found, stems)}.\n{REDO}")
    return load_labels(labels_dir, len(found))


def read_ids(labels_dir: Path) -> list[str]:
    """The stems of ``ids_all.txt``; bytes that are not UTF-8 as surrogate escapes.

    Raises:
        InputError: the file cannot be read, or is not what was written.
    """
    path = labels_dir / IDS_FILE
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as e:
        if is_absent(e):
            raise InputError(f"Could not read {path}: {e.strerror or e}\n{REDO}") from e
        raise refusal(path, e) from e
    _require_recorded(labels_dir, IDS_FILE)
    return text.removesuffix("\n").split("\n")


def _first_difference(found: Sequence[str], wanted: Sequence[str]) -> str:
    for row, (have, want) in enumerate(zip(found, wanted, strict=False)):
        if have != want:
            return f"is for other samples: row {row} is {have[:80]!r}, expected {want[:80]!r}"
    return f"lists {amount(len(found), 'sample')}, expected {len(wanted):,}"


def load_labels(labels_dir: Path, rows: int) -> NDArray[np.float32]:
    """Loads ``labels_all_23.npy`` of ``rows`` samples.

    Returns:
        float32 [rows, 23].

    Raises:
        InputError: it is missing or damaged, or of another shape, dtype or order of classes.
    """
    path = labels_dir / LABELS_FILE
    mapped = map_npy(path)
    wanted = (rows, len(CLASS_NAMES))
    require_width(path, mapped.shape)
    if mapped.shape != wanted or mapped.dtype != np.float32:
        raise InputError(
            f"{path} holds {mapped.dtype} {mapped.shape}, expected float32 {wanted}.\n{REDO}"
        )
    labels = np.array(mapped, np.float32, order="C")
    if not np.isfinite(labels).all():
        raise InputError(f"{path} holds values that are not finite.\n{REDO}")
    _require_recorded(labels_dir, LABELS_FILE)
    _require_classes(labels_dir)
    return labels


def _require_classes(labels_dir: Path) -> None:
    """Refuses labels whose list of classes, where there is one, is another than the paper's.

    Raises:
        InputError: it is another one, so that columns mean other genres, or it cannot be read.
    """
    path = labels_dir / CLASS_NAMES_FILE
    try:
        names = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} is not a list of classes: {str(e)[:200]}\n{REDO}") from e
    if names != list(CLASS_NAMES):
        raise InputError(
            f"{path} lists other classes than the paper's {len(CLASS_NAMES)} genres, or in another "
            f"order: the columns of {LABELS_FILE} mean something else.\n{REDO}"
        )


def require_width(path: Path, shape: tuple[int, ...]) -> None:
    """Refuses labels of other classes than the paper's: writing them again would not change that.

    Raises:
        InputError: there are not 23 columns.
    """
    if len(shape) == 2 and shape[1] != len(CLASS_NAMES):
        raise InputError(
            f"{path} holds labels of {shape[1]} classes; read are those of the paper's "
            f"{len(CLASS_NAMES)} genres,\nwhich `labels` writes, and of no others.\n"
            "Name the folder that it wrote. To train with other classes, leave labels_dir out: "
            "`index` of a batch gives the rows of your own array."
        )
