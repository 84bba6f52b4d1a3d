"""The text recipe: view 0 is the synopsis, every other view hides 15% of its words."""

from __future__ import annotations

import random
from collections.abc import Sequence

from featurestore.seeds import view_seed

MASK = "[MASK]"
MASK_SHARE = 0.15


def masked_words(words: Sequence[str], seed: int) -> list[int]:
    """Which words a view hides.

    Args:
        words: the text's white-space words; only their number matters.
        seed: the view's seed.

    Returns:
        Positions in ``words``, none twice, in the order they were drawn: 15% of the words, halves
        rounded to even, at least one; none where there is no word.
    """
    if not words:
        return []
    positions = list(range(len(words)))
    random.Random(seed).shuffle(positions)
    return positions[: max(1, round(MASK_SHARE * len(words)))]


def masked_view(words: Sequence[str], seed: int) -> str:
    """The words joined by one space, with those that ``seed`` draws replaced by ``[MASK]``."""
    view = list(words)
    for position in masked_words(words, seed):
        view[position] = MASK
    return " ".join(view)


def views(text: str, base_seed: int, index: int, views: int) -> list[str]:
    """All text views of one sample.

    Args:
        text: the synopsis; view 0 is this very text, white space included.
        base_seed: the build's seed.
        index: the sample's index.
        views: V, the number of views with the clean one.

    Returns:
        V texts. Of a text without words, views 1.. are empty.
    """
    words = text.split()
    seeds = (view_seed(base_seed, index, view, "text") for view in range(1, views))
    return [text, *(masked_view(words, seed) for seed in seeds)]
