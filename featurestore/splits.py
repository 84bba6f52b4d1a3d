"""Reads ``split.json``: which samples are for training, validation and test."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Split:
    """The three parts of a data set, as sample indices.

    Attributes:
        train: int64 [n], sorted and unique.
        val: int64 [n], sorted and unique; ``dev`` in the published file.
        test: int64 [n], sorted and unique.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def read_split(split_json: Path | str, stems: Sequence[str]) -> Split:
    """Reads a split file against the stems it speaks about.

    Its keys are ``train``, ``dev`` (or ``val``) and ``test``, each a list of stems. A string that
    is a stem means that stem; other strings, and integers, are zero-padded to the longest stem's
    length, as files that went through a number column have lost their zeros. A stem may be in no
    part, but not in two.

    Args:
        split_json: the file.
        stems: all stems, in sample order.

    Raises:
        InputError: the file is missing, not JSON, lacks a part, names a stem that ``stems`` does
            not hold, or puts one into two parts.
    """
    path = Path(split_json)
    document = _read_document(path)
    positions = {stem: index for index, stem in enumerate(stems)}
    width = max(map(len, stems), default=0)
    val_key = "dev" if "dev" in document else "val"
    parts = {}
    for name, key in (("train", "train"), ("val", val_key), ("test", "test")):
        entries = _entries(path, document, key)
        parts[name] = _indices(path, key, entries, positions, width)
    _refuse_overlap(path, parts, stems)
    return Split(**{name: np.array(sorted(found), np.int64) for name, found in parts.items()})


def _read_document(path: Path) -> dict[str, Any]:
    try:
        # Given bytes, json reads UTF-8 with or without a byte order mark.
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise InputError(f"Could not read {path}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not valid JSON: {str(e)[:200]}") from e
    if not isinstance(document, dict):
        raise InputError(
            f"{path} must hold an object with the keys train, dev (or val) and test; "
            f"found a {type(document).__name__}."
        )
    return document


def _entries(path: Path, document: Mapping[str, Any], key: str) -> list[Any]:
    if key not in document:
        wanted = "dev (or val)" if key == "val" else key
        found = ", ".join(map(reprlib.repr, list(document)[:_SHOWN])) or "none"
        raise InputError(f"{path} has no key {wanted}; its keys are: {found}.")
    entries = document[key]
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: {key} must be a list of stems; found a {type(entries).__name__}."
        )
    return entries


def _indices(
    path: Path, key: str, entries: Sequence[Any], positions: Mapping[str, int], width: int
) -> set[int]:
    found: set[int] = set()
    unknown: list[object] = []
    for entry in entries:
        index = _position(entry, positions, width)
        if index is None:
            unknown.append(entry)
        else:
            found.add(index)
    if unknown:
        raise InputError(
            f"{path}: {len(unknown):,} of {len(entries):,} entries of {key} name no sample: "
            f"{_some(unknown)}.\nIs this the split of another data set, or are files missing?"
        )
    return found


def _position(entry: object, positions: Mapping[str, int], width: int) -> int | None:
    if isinstance(entry, str) and entry in positions:
        return positions[entry]
    if isinstance(entry, (str, int)) and not isinstance(entry, bool):
        return positions.get(str(entry).zfill(width))
    return None


def _refuse_overlap(path: Path, parts: Mapping[str, set[int]], stems: Sequence[str]) -> None:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(parts[first] & parts[second])
        if shared:
            raise InputError(
                f"{path}: {len(shared):,} samples are both in {first} and in {second}: "
                f"{_some([stems[i] for i in shared])}.\n"
                "Scores on samples that were trained on mean nothing; take them out of one list."
            )


def _some(items: Collection[object]) -> str:
    shown = ", ".join(map(reprlib.repr, list(items)[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown}, …"
