"""The ids of samples: any Unicode text without control characters, each once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from featurestore.errors import InputError

# Control characters (C0, DEL, C1), line and paragraph separators, and lone surrogates.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def require_ids(ids: Sequence[str], origin: Callable[[int], str]) -> None:
    """Checks the ids of a collection, in order.

    Args:
        ids: the ids.
        origin: function that returns where the id of this number was read, for messages: a file's
            name, or ``row 17``.

    Raises:
        InputError: an id is empty, has a character that is not allowed, or occurs twice.
    """
    for number, id_ in enumerate(ids):
        if not id_:
            raise InputError(f"The id of {origin(number)} is empty: give every sample an id.")
        refused = _REFUSED.search(id_)
        if refused is not None:
            raise InputError(
                f"The id of {origin(number)} holds the character {refused[0]!r}: {id_!r}.\n"
                "An id has no control characters, line breaks or lone surrogates: rename it."
            )
    if len(set(ids)) < len(ids):
        raise _twice(ids, origin)


def _twice(ids: Sequence[str], origin: Callable[[int], str]) -> InputError:
    """The error for repeated ids: names the first one and the first two places where it occurs."""
    first: dict[str, int] = {}
    for number, id_ in enumerate(ids):
        other = first.setdefault(id_, number)
        if other != number:
            count = len(ids) - len(set(ids))
            more = f" ({count - 1:,} more ids occur again)" if count > 1 else ""
            return InputError(
                f"The id {id_!r} occurs twice: {origin(other)} and {origin(number)}{more}.\n"
                "Every sample has an id of its own: rename one of them."
            )
    raise AssertionError("the ids are unique")
