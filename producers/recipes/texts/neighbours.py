"""The words that are neighbours in some view of a text with hidden words.

Cleaning a text, and encoding it as ids, can be done word by word if the result for a word depends
at most on its neighbours. Whether it does is checked with texts that contain every pair of
neighbours; this module finds few such texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from producers.recipes.texts.views import HiddenWords

Positions = NDArray[np.intp]
"""Words of a text by their positions; -1 is the token that replaces hidden words."""


def neighbour_texts(views: HiddenWords) -> list[Positions]:
    """The texts that contain every pair of neighbours of the views, except view 0.

    Args:
        views: the views, of at least one word, with a known token.

    Returns:
        At least one text. Every word that is the first one of a view is the first one of a text. If
        words are left out, so is its successor, and the last two words of every view are those of a
        text.
    """
    if views.token is None:
        return _after_dropping(len(views.words), views.hidden)
    return _after_masking(len(views.words))


def kept(words: int, hidden: Sequence[int]) -> Positions:
    """The positions of the words that a view keeps, in ascending order."""
    is_kept = np.ones(words, np.bool_)
    is_kept[list(hidden)] = False
    return is_kept.nonzero()[0]


def joined(words: Sequence[str], token: str | None, text: Positions) -> str:
    """A text of words and tokens, joined by one space."""
    parts = words if token is None else [*words, token]  # at position -1
    return " ".join([parts[at] for at in text.tolist()])


def _after_masking(words: int) -> list[Positions]:
    """All words, and all words with a token before and after each, and after a token."""
    between = np.full(2 * words + 2, -1, np.intp)
    between[1 : 2 * words : 2] = np.arange(words)
    return [np.arange(words), between]


def _after_dropping(words: int, hidden: Sequence[Sequence[int]]) -> list[Positions]:
    """All words, then the new pairs of neighbours; and the beginnings and ends of the views."""
    ends: set[tuple[int, ...]] = set()
    found = []
    for positions in hidden:
        view = kept(words, positions)
        ends |= {tuple(view[:2].tolist()), tuple(view[-2:].tolist())}
        gaps = np.diff(view)
        at = (gaps > 1).nonzero()[0]
        found.append(gaps[at] * words + view[at])
    pairs = np.unique(np.concatenate(found))
    # The last pair is followed by a word, too.
    chain = np.concatenate([np.arange(words), _chained(*np.divmod(pairs, words)), [0]])
    return [chain, *(np.array(end, np.intp) for end in sorted(ends) if end)]


def _chained(gaps: Positions, starts: Positions) -> Positions:
    """Positions in an order in which every ``start`` is followed by ``start + gap``.

    Pairs of one gap that follow each other share a word, so that there are few words.
    """
    gap = np.concatenate([gaps, gaps])
    position = np.concatenate([starts, starts + gaps])
    order = np.lexsort((position, position % np.maximum(gap, 1), gap))
    gap, position = gap[order], position[order]
    is_new = np.ones(len(gap), np.bool_)
    is_new[1:] = (np.diff(gap) != 0) | (np.diff(position) != 0)
    chained: Positions = position[is_new]
    return chained
