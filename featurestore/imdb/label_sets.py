"""Opens the labels in a folder, whether they are MM-IMDb's or those of another collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurestore.errors import ConfigError, InputError
from featurestore.imdb import label_files
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.labels import files
from featurestore.labels.label_set import MULTI_LABEL, LabelSet


def holds_others(labels_dir: Path) -> bool:
    """Whether a folder holds labels of another collection than MM-IMDb.

    Raises:
        InputError: it holds both.
    """
    if not files.is_label_set(labels_dir):
        return False
    if (labels_dir / label_files.LABELS_FILE).is_file():
        raise InputError(
            f"{labels_dir} holds the labels of MM-IMDb, {label_files.LABELS_FILE}, and those of "
            f"another collection, {files.ROWS_FILE}.\nMove one set to another folder."
        )
    return True


def names_of(labels_dir: Path) -> tuple[str, str]:
    """The file names in a folder of labels: first the label rows, then the samples' ids."""
    if holds_others(labels_dir):
        return files.ROWS_FILE, files.IDS_FILE
    return label_files.LABELS_FILE, label_files.IDS_FILE


def read_any_ids(labels_dir: Path) -> list[str]:
    """The ids of the samples of a folder of labels.

    Raises:
        InputError: the file is missing, or its content differs from what was written.
    """
    read = files.read_ids if holds_others(labels_dir) else label_files.read_ids
    return read(labels_dir)


def load_any_labels(labels_dir: Path, rows: int) -> LabelSet:
    """The labels in a folder, of ``rows`` samples.

    Raises:
        InputError: a file is missing or damaged.
    """
    if holds_others(labels_dir):
        return files.load_label_set(labels_dir, rows)
    return LabelSet(MULTI_LABEL, CLASS_NAMES, label_files.load_labels(labels_dir, rows))


def read_any_labels(labels_dir: Path, ids: Sequence[str]) -> LabelSet:
    """The labels of exactly these samples, of any collection.

    Args:
        labels_dir: a folder that ``labels`` wrote.
        ids: the expected id of each row, in order.

    Raises:
        InputError: a file is missing or damaged, or belongs to other samples or another order.
    """
    if holds_others(labels_dir):
        return files.read_label_set(labels_dir, ids)
    return LabelSet(MULTI_LABEL, CLASS_NAMES, label_files.read_labels(labels_dir, ids))


def require_multi_label(labels: LabelSet) -> None:
    """Refuses labels that have no noisy form.

    Raises:
        ConfigError: a sample has one class, or a value.
    """
    if labels.kind != MULTI_LABEL:
        has = "one class" if labels.kind == "class" else "a value"
        raise ConfigError(
            f"Noisy labels are multi-label ones, and each sample of these has {has}.\n"
            "Leave --augment (in Python labels='augmented') out."
        )


def split_in(labels_dir: Path | None) -> Path | None:
    """The split file in a folder of labels, or None."""
    path = None if labels_dir is None else labels_dir / files.SPLIT_FILE
    return path if path is not None and path.is_file() else None
