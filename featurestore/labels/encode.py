"""Encode the labels of a collection, as its source gives them, as rows of numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.labels.label_set import MULTI_LABEL, ONE_CLASS, VALUE, Kind, LabelSet

_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 80
_FORMS = (
    "Every label is a list of strings (several classes), a string or an integer (one class), or a "
    "float (a value); null or an empty text is no label."
)
# The kinds of labels by the type of a value. Integers among floats are values: JSON writes 2.0
# and 2 alike.
_TITLES = {"list": "a list", "str": "a string", "int": "an integer", "float": "a float"}
Place = Callable[[int], str]


def encode_labels(
    values: Iterable[object],
    place: Place,
    *,
    classes: Sequence[str] | None = None,
    name: str = "value",
) -> LabelSet:
    """Encodes the labels of all samples.

    Args:
        values: the label of each sample in order: a list of strings or integers, a string, an
            integer, a float, or None. An empty string and NaN are no label; an empty list is the
            label of a sample in none of the classes.
        place: function that returns where the label of a number was read, for messages.
        classes: the names of the classes in the order of their columns; None for those that occur,
            sorted by code point, or by number if all are integers.
        name: what values measure.

    Raises:
        InputError: labels are of several kinds, one is of another type or not among ``classes``,
            or no sample has one.
        ConfigError: ``classes`` were given for values.
    """
    labels = [_plain(value) for value in values]
    kind = _kind(labels, place)
    if kind == VALUE:
        if classes is not None:
            raise ConfigError("The labels are floats, which are values: they have no --classes.")
        return LabelSet(VALUE, (name,), _value_rows(labels, place))
    named = [_names(label, place, at) for at, label in enumerate(labels)]
    columns = _sorted_classes(labels) if classes is None else tuple(classes)
    rows = _rows(named, columns, place, given=classes is not None)
    return LabelSet(kind, columns, rows)


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the names of classes from a JSON file that holds a list of them.

    Raises:
        InputError: the file cannot be read, or is not a list of different names.
    """
    expected = 'Expected a JSON list of names, such as ["cat", "dog"].'
    try:
        names = json.loads(path.read_bytes())
    except OSError as e:
        raise InputError(f"Could not read {path}: {e.strerror or e}\n{expected}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is not valid JSON: {str(e)[:200]}\n{expected}") from e
    if not isinstance(names, list) or not names:
        raise InputError(f"{path} holds no list of classes.\n{expected}")
    classes = []
    for number, value in enumerate(names):
        if type(value) not in (str, int) or value == "" or _SURROGATE.search(str(value)):
            raise InputError(f"{path}: entry {number} is no name: {value!r:.{_SHOWN}}.\n{expected}")
        classes.append(str(value))
    if len(set(classes)) < len(classes):
        twice = next(c for i, c in enumerate(classes) if c in classes[:i])
        raise InputError(f"{path} names the class {twice!r:.{_SHOWN}} twice.\n{expected}")
    return tuple(classes)


def _plain(value: object) -> object:
    """A value as a plain one; None for no label."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        value = list(value)
    if value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def _kind(labels: Sequence[object], place: Place) -> Kind:
    """The kind of all labels, by the types of all values."""
    first: dict[str, int] = {}
    for at, label in enumerate(labels):
        if label is None:
            continue
        type_name = "int" if isinstance(label, bool) else type(label).__name__
        if type_name not in _TITLES:
            raise InputError(
                f"The label of {place(at)} is a {type_name}: {label!r:.{_SHOWN}}.\n{_FORMS}"
            )
        first.setdefault(type_name, at)
    found = sorted(first, key=first.__getitem__)
    if not found:
        raise InputError(
            f"None of {len(labels):,} samples has a label. Nothing was written.\n{_FORMS}"
        )
    if len(found) > 1 and set(found) != {"int", "float"}:
        (a, b) = (f"that of {place(first[t])} is {_TITLES[t]}" for t in found[:2])
        raise InputError(f"The labels are of several kinds: {a}, and {b}.\n{_FORMS}")
    if "list" in first:
        return MULTI_LABEL
    return VALUE if "float" in first else ONE_CLASS


def _value_rows(labels: Sequence[object], place: Place) -> npt.NDArray[np.float32]:
    rows = np.full((len(labels), 1), np.nan, np.float32)
    for at, label in enumerate(labels):
        if isinstance(label, (int, float)):
            with np.errstate(over="ignore"):
                rows[at] = np.float32(label)
            if not np.isfinite(rows[at, 0]):
                raise InputError(
                    f"The label of {place(at)} is {label}: a value is finite, and at most "
                    f"{np.finfo(np.float32).max:.2g}.\nCorrect it, or leave it empty."
                )
    return rows


def _names(label: object, place: Place, at: int) -> list[str] | None:
    """The names of a label's classes; None for no label."""
    if label is None:
        return None
    names = []
    for item in label if isinstance(label, list) else [label]:
        if not isinstance(item, (str, int)) or item == "" or _SURROGATE.search(str(item)):
            raise InputError(
                f"The label of {place(at)} holds {item!r:.{_SHOWN}}, which is no name of a class."
                f"\n{_FORMS}"
            )
        names.append(str(item))
    return names


def _sorted_classes(labels: Sequence[object]) -> tuple[str, ...]:
    items: set[str | int] = set()
    for label in labels:
        items.update(label if isinstance(label, list) else [] if label is None else [label])  # type: ignore[list-item]
    if all(isinstance(item, int) for item in items):
        return tuple(dict.fromkeys(str(item) for item in sorted(items, key=int)))
    return tuple(sorted({str(item) for item in items}))


def _rows(
    named: Sequence[list[str] | None], columns: Sequence[str], place: Place, *, given: bool
) -> npt.NDArray[np.float32]:
    column = {name: number for number, name in enumerate(columns)}
    if not column:
        raise InputError(
            f"None of {len(named):,} samples has a class: all lists are empty. Nothing was written."
            f"\n{_FORMS}"
        )
    rows = np.zeros((len(named), len(columns)), np.float32)
    for at, names in enumerate(named):
        if names is None:
            rows[at] = np.nan
            continue
        for name in names:
            if given and name not in column:
                raise InputError(
                    f"The label of {place(at)} is {name!r:.{_SHOWN}}, which is not among the "
                    f"{len(columns):,} --classes.\nAdd it to that file, or leave --classes out."
                )
            rows[at, column[name]] = 1.0
    return rows
