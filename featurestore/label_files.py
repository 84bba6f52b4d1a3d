"""Reads the clean label files back, and makes sure that they are of the samples in question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.genres import CLASS_NAMES
from featurestore.npy import map_npy
from featurestore.refusals import is_absent, refusal
from featurestore.wording import amount

LABELS_FILE = "labels_all_23.npy"
IDS_FILE = "ids_all.txt"

REDO = "Make the labels from the same data folder as the embeddings: manyviews labels"


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
        InputError: the file cannot be read.
    """
    path = labels_dir / IDS_FILE
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as e:
        if is_absent(e):
            raise InputError(f"Could not read {path}: {e.strerror or e}\n{REDO}") from e
        raise refusal(path, e) from e
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
        InputError: it is missing or damaged, or of another shape or dtype.
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
    return labels


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
