"""Reads ``split.json``, which assigns samples to training, validation and test."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.wording import amount

_SHOWN = 5
_EXPECTED = "Expected a JSON file with lists of stems under train, dev (or val) and test."


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
    """Reads a split file and replaces its stems by sample indices.

    Its keys are ``train``, ``dev`` (or ``val``) and ``test``, each a list of stems. A string that
    equals a stem means that stem; other strings, and integers, are zero-padded to the length of the
    longest stem, because stems that were stored as numbers have lost their leading zeros. A stem
    may be in no part, but not in two.

    Args:
        split_json: the file.
        stems: all stems, in sample order.

    Raises:
        InputError: the file is missing, is not JSON, lacks a part, names a stem that is not in
            ``stems``, or puts one into two parts.
    """
    path = Path(split_json)
    comparison = compare_split(path, stems)
    for key, entries in comparison.unknown.items():
        if entries:
            raise InputError(
                f"{path}: {len(entries):,} of {comparison.entries[key]:,} entries of {key} name no "
                f"sample: {_some(entries)}.\n"
                "Is this the split of another data set, or are files missing?"
            )
    _refuse_overlap(path, comparison, stems)
    return Split(**{name: np.array(sorted(p), np.int64) for name, p in comparison.parts.items()})


@dataclass(frozen=True, slots=True)
class SplitComparison:
    """A split file compared with the stems of a data set, errors included.

    Attributes:
        parts: sample indices by part: ``train``, ``val`` and ``test``.
        entries: number of entries by key of the file.
        unknown: the entries that name no sample, by key of the file.
    """

    parts: Mapping[str, set[int]]
    entries: Mapping[str, int]
    unknown: Mapping[str, list[object]]

    def overlap(self) -> Iterator[tuple[str, str, list[int]]]:
        """Yields each pair of parts that share samples, with the sorted indices of these."""
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = sorted(self.parts[first] & self.parts[second])
            if shared:
                yield first, second, shared


def compare_split(path: Path, stems: Sequence[str]) -> SplitComparison:
    """Reads a split file, accepting unknown and repeated stems; see :func:`read_split`.

    Raises:
        InputError: the file is missing, not JSON, or lacks a part.
    """
    document = _read_document(path)
    positions = {stem: index for index, stem in enumerate(stems)}
    width = max(map(len, stems), default=0)
    val_key = "dev" if "dev" in document else "val"
    parts: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    unknown: dict[str, list[object]] = {}
    for name, key in (("train", "train"), ("val", val_key), ("test", "test")):
        entries = _entries(path, document, key)
        indices = [_position(entry, positions, width) for entry in entries]
        parts[name] = {index for index in indices if index is not None}
        counts[key] = len(entries)
        unknown[key] = [e for e, index in zip(entries, indices, strict=True) if index is None]
    return SplitComparison(parts, counts, unknown)


def _read_document(path: Path) -> dict[str, Any]:
    try:
        # From bytes, json decodes UTF-8 with or without a byte order mark.
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise InputError(f"Could not read {path}: {e.strerror or e}\n{_EXPECTED}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not valid JSON: {str(e)[:200]}\n{_EXPECTED}") from e
    if not isinstance(document, dict):
        raise InputError(
            f"{path} must hold an object with the keys train, dev (or val) and test; "
            f"found a {type(document).__name__}."
        )
    return document


def _entries(path: Path, document: Mapping[str, Any], key: str) -> list[Any]:
    if key not in document:
        wanted = "dev (or val)" if key == "val" else key
        keys = ", ".join(map(reprlib.repr, list(document)[:_SHOWN])) or "none"
        raise InputError(f"{path} has no key {wanted}; its keys are: {keys}.")
    entries = document[key]
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: {key} must be a list of stems; found a {type(entries).__name__}."
        )
    return entries


def _position(entry: object, positions: Mapping[str, int], width: int) -> int | None:
    if isinstance(entry, str) and entry in positions:
        return positions[entry]
    if isinstance(entry, (str, int)) and not isinstance(entry, bool):
        return positions.get(str(entry).zfill(width))
    return None


def _refuse_overlap(path: Path, comparison: SplitComparison, stems: Sequence[str]) -> None:
    for first, second, shared in comparison.overlap():
        verb = "is" if len(shared) == 1 else "are"
        raise InputError(
            f"{path}: {amount(len(shared), 'sample')} {verb} both in {first} and in {second}: "
            f"{_some([stems[i] for i in shared])}.\n"
            "Scores on samples that were trained on mean nothing; take them out of one list."
        )


def _some(items: Collection[object]) -> str:
    shown = ", ".join(map(reprlib.repr, list(items)[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown}, …"
