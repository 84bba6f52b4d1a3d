"""Reads the clean label files and checks that they belong to the expected samples.

A record in the same folder holds their digests, which every reader compares. Label files of the
published scripts have no such record and are not compared.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.labels.files import first_difference
from featurestore.labels.record import REDO, read_recorded, require_recorded, verify_record
from featurestore.reading.npy import map_npy
from featurestore.system.links import FOLLOW
from featurestore.verify.findings import Finding

LABELS_FILE = "labels_all_23.npy"
IDS_FILE = "ids_all.txt"
CLASS_NAMES_FILE = "class_names_23.json"
# Not ``*_manifest.json``: a folder's materialized embeddings are found by that pattern.
RECORD_FILE = "labels_all_23.digests.json"


def verify_labels(
    labels_dir: Path, *, checked: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compares clean label files with their record; returns no findings if there is no record.

    Args:
        labels_dir: the folder.
        checked: called with the name of each file that is checked.

    Raises:
        StorageError: a file cannot be read.
    """
    return verify_record(labels_dir / RECORD_FILE, checked=checked)


def read_labels(labels_dir: Path, stems: Sequence[str]) -> NDArray[np.float32]:
    """Loads the clean labels of exactly these samples.

    Args:
        labels_dir: the folder that holds ``labels_all_23.npy`` and ``ids_all.txt``.
        stems: the expected stem of each row, in order.

    Returns:
        float32 [N, 23].

    Raises:
        InputError: a file is missing or damaged, or belongs to other samples or another order.
    """
    ids = read_ids(labels_dir)
    if ids != list(stems):
        lacks = set(ids) < set(stems)
        links = f"\nIf the embeddings were built with {FOLLOW}, give it to `labels` as well."
        raise InputError(
            f"{labels_dir / IDS_FILE} {first_difference(ids, stems)}.\n{REDO}{links * lacks}"
        )
    return load_labels(labels_dir, len(ids))


def read_ids(labels_dir: Path) -> list[str]:
    """The stems in ``ids_all.txt``; bytes that are not UTF-8 become surrogate escapes.

    Raises:
        InputError: the file is missing, or its content differs from what was written.
    """
    content = read_recorded(labels_dir / RECORD_FILE, IDS_FILE)
    return content.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")


def load_labels(labels_dir: Path, rows: int) -> NDArray[np.float32]:
    """Loads ``labels_all_23.npy`` of ``rows`` samples.

    Returns:
        float32 [rows, 23].

    Raises:
        InputError: the file is missing or damaged, or has another shape, dtype or class order.
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
    assert isinstance(mapped.base, mmap.mmap)  # the whole file, of which ``labels`` is a copy
    require_recorded(labels_dir / RECORD_FILE, LABELS_FILE, mapped.base)
    _require_classes(labels_dir)
    return labels


def _require_classes(labels_dir: Path) -> None:
    """Refuses labels whose list of classes, if the folder has one, differs from the paper's.

    Raises:
        InputError: the list differs, so that columns mean other genres, or it cannot be read.
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
    """Refuses labels of other classes than the paper's, with advice for custom classes.

    Raises:
        InputError: the number of columns is not 23.
    """
    if len(shape) == 2 and shape[1] != len(CLASS_NAMES):
        raise InputError(
            f"{path} holds labels of {shape[1]} classes; of this name are those of the paper's "
            f"{len(CLASS_NAMES)} genres,\nwhich `labels` writes.\n"
            "Labels of other classes are in labels.npy: name the folder that `labels --data` or "
            "`labels --config` wrote."
        )
