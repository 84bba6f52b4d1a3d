"""The 23 genres of the paper, and their names in the JSON document of a synopsis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = (
    *("Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama"),
    *("Family", "Fantasy", "Film-Noir", "History", "Horror", "Music", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Short", "Sport", "Thriller", "War", "Western"),
)

_COLUMNS = {name.lower(): column for column, name in enumerate(CLASS_NAMES)} | {
    alias: CLASS_NAMES.index("Sci-Fi") for alias in ("science fiction", "sci fi")
}
_KEYS = ("genres", "Genres", "genre", "labels")
_NAME_SHOWN = 80


def genres_vector(document: object) -> tuple[NDArray[np.float32], list[str]]:
    """Reads the genres of one synopsis by the published rules.

    Args:
        document: the parsed JSON; a value that is not an object has no genres.

    Returns:
        The multi-hot row, float32 [23], and the genres outside the 23: lower case, printable, at
        most 80 characters before escapes, in the document's order.
    """
    row = np.zeros(len(CLASS_NAMES), np.float32)
    unknown = []
    for item in _genre_list(document):
        name = item.strip().lower() if isinstance(item, str) else f"({type(item).__name__})"
        column = _COLUMNS.get(name)
        if column is None:
            unknown.append(_printable(name[:_NAME_SHOWN]))
        else:
            row[column] = 1.0
    return row, unknown


def _genre_list(document: object) -> list[Any]:
    if not isinstance(document, dict):
        return []
    lists = (document[key] for key in _KEYS if isinstance(document.get(key), list))
    return next(lists, [])


def _printable(name: str) -> str:
    # Unknown genres are printed on terminals: escape control characters and lone surrogates.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
