"""Writes and reads the label files of a collection that is not MM-IMDb.

``labels.npy`` holds the rows of a :class:`LabelSet`, ``ids.txt`` one id a line, and
``class_names.json`` the names of the columns. ``labels.digests.json`` records the kind of the
labels, the origin of the split and the digest of each file.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import ConfigError, InputError
from featurestore.labels.label_set import KINDS, LabelSet
from featurestore.labels.record import (
    REDO,
    label_record,
    read_recorded,
    recorded_digests,
    require_recorded,
)
from featurestore.labels.splitting import Parts, split_document
from featurestore.reading.npy import map_npy, npy_header
from featurestore.records import stems_sha256
from featurestore.storage.digests import read_record
from featurestore.system.durable import make_folder, replace_files
from featurestore.system.removal import remove
from featurestore.wording import amount

ROWS_FILE = "labels.npy"
IDS_FILE = "ids.txt"
CLASSES_FILE = "class_names.json"
SPLIT_FILE = "split.json"
# Not ``*_manifest.json``: a folder's materialized embeddings are found by that pattern.
RECORD_FILE = "labels.digests.json"
FILES = (ROWS_FILE, IDS_FILE, CLASSES_FILE, SPLIT_FILE, RECORD_FILE)


@dataclass(frozen=True, slots=True)
class SplitOf:
    """A split and its origin.

    Attributes:
        parts: int64 ``[N]``, see ``splitting.named_parts``.
        origin: plain values: ``{"from": "collection"}``, or ``{"from": "fractions"}`` with the
            fractions and the seed.
    """

    parts: Parts
    origin: dict[str, Any]


def write_label_set(
    out_dir: Path, ids: Sequence[str], labels: LabelSet, split: SplitOf | None
) -> None:
    """Writes the label files of a collection; the record is renamed last.

    Args:
        out_dir: the output folder; created if it is missing.
        ids: all ids, in sample order.
        labels: the labels.
        split: the split to write; without one, a ``split.json`` of earlier labels is removed.

    Raises:
        ConfigError: the folder holds a ``split.json`` that `labels` did not write.
        StorageError: a file could not be written; none was replaced.
    """
    make_folder(out_dir)
    contents: dict[str, list[bytes]] = {
        CLASSES_FILE: [(json.dumps(labels.classes, indent=2, ensure_ascii=False) + "\n").encode()],
        ROWS_FILE: [npy_header(labels.rows.shape), labels.rows.astype("<f4").tobytes()],
        IDS_FILE: ["".join(f"{id_}\n" for id_ in ids).encode()],
    }
    if split is not None:
        contents[SPLIT_FILE] = [split_document(split.parts, ids)]
    facts: dict[str, Any] = {
        "kind": labels.kind,
        "samples": len(ids),
        "classes": len(labels.classes),
        "unlabelled": int((~labels.known).sum()),
        "ids_sha256": stems_sha256(ids),
        "split": None if split is None else split.origin,
    }
    _replace_split(out_dir, has_split=split is not None)
    # Until the record is renamed, an older one does not match the changed files.
    contents[RECORD_FILE] = [label_record(facts, contents)]
    replace_files([(out_dir / name, parts) for name, parts in contents.items()])


def write_split(out_dir: Path, ids: Sequence[str], split: SplitOf) -> None:
    """Writes ``split.json`` beside the labels of MM-IMDb, whose record does not mention it.

    Raises:
        ConfigError: the folder holds another split.
        StorageError: the file could not be written.
    """
    path, content = out_dir / SPLIT_FILE, split_document(split.parts, ids)
    if path.is_file() and path.read_bytes() != content:
        raise _exists(path, "holds another split")
    make_folder(out_dir)
    replace_files([(path, [content])])


def _exists(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"{path} {problem}.\nChoose another --out-dir, or move that file away.")


def _replace_split(out_dir: Path, *, has_split: bool) -> None:
    """Removes a split of earlier labels if there is no new one; refuses to replace any other."""
    path = out_dir / SPLIT_FILE
    if not path.is_file():
        return
    try:
        is_ours = SPLIT_FILE in recorded_digests(out_dir / RECORD_FILE)
    except ValueError:
        is_ours = False
    if not is_ours and has_split:
        raise _exists(path, "exists, and `labels` did not write it")
    if is_ours and not has_split:
        remove(path)


def is_label_set(labels_dir: Path) -> bool:
    """Whether a folder holds label files of a collection that is not MM-IMDb."""
    return (labels_dir / ROWS_FILE).is_file() or (labels_dir / RECORD_FILE).is_file()


def read_label_set(labels_dir: Path, ids: Sequence[str]) -> LabelSet:
    """Reads the labels of exactly these samples.

    Args:
        labels_dir: the folder that ``labels`` wrote.
        ids: the expected id of each row, in order.

    Raises:
        InputError: a file is missing or damaged, or belongs to other samples or another order.
    """
    found = read_ids(labels_dir)
    if found != list(ids):
        raise InputError(f"{labels_dir / IDS_FILE} {first_difference(found, ids)}.\n{REDO}")
    return load_label_set(labels_dir, len(found))


def read_ids(labels_dir: Path) -> list[str]:
    """The ids in ``ids.txt``.

    Raises:
        InputError: the file is missing, or its content differs from what was written.
    """
    content = _read(labels_dir, IDS_FILE).decode("utf-8", "surrogateescape")
    return content.removesuffix("\n").split("\n")


def load_label_set(labels_dir: Path, rows: int) -> LabelSet:
    """Reads the labels of ``rows`` samples.

    Raises:
        InputError: a file is missing or damaged, or has another shape, type or content than its
            record states.
    """
    kind = _record(labels_dir)["kind"]
    classes = json.loads(_read(labels_dir, CLASSES_FILE))
    path = labels_dir / ROWS_FILE
    mapped = map_npy(path)
    wanted = (rows, len(classes))
    if mapped.shape != wanted or mapped.dtype != np.float32:
        raise InputError(
            f"{path} holds {mapped.dtype} {mapped.shape}, expected float32 {wanted}.\n{REDO}"
        )
    assert isinstance(mapped.base, mmap.mmap)  # the whole file
    require_recorded(labels_dir / RECORD_FILE, ROWS_FILE, mapped.base)
    return LabelSet(kind, tuple(classes), np.array(mapped, np.float32, order="C"))


def _record(labels_dir: Path) -> dict[str, Any]:
    """The record of the folder's labels, which alone states their kind.

    Raises:
        InputError: it is missing or damaged.
    """
    path = labels_dir / RECORD_FILE
    try:
        record = read_record(path)
        if record.get("kind") not in KINDS or "sha256" not in record:
            raise ValueError(f"its kind is {record.get('kind')!r:.80}")
    except (OSError, ValueError) as e:
        problem = "it is missing" if isinstance(e, FileNotFoundError) else str(e)[:200]
        raise InputError(f"{path} is not the record that `labels` wrote: {problem}\n{REDO}") from e
    return record


def _read(labels_dir: Path, name: str) -> bytes:
    """A label file's content, compared with the record, which must exist."""
    _record(labels_dir)
    return read_recorded(labels_dir / RECORD_FILE, name)


def first_difference(ids: Sequence[str], wanted: Sequence[str]) -> str:
    """How a list of ids differs from the expected one, after the name of its file."""
    for row, (have, want) in enumerate(zip(ids, wanted, strict=False)):
        if have != want:
            return f"is for other samples: row {row} is {have[:80]!r}, expected {want[:80]!r}"
    return f"lists {amount(len(ids), 'sample')}, expected {len(wanted):,}"
