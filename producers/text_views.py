"""The text recipe: view 0 is the synopsis, every other view hides 15% of its words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
    _shuffle(positions, random.Random(seed))
    return positions[: max(1, round(MASK_SHARE * len(words)))]


def _shuffle(items: list[int], generator: random.Random) -> None:
    """``generator.shuffle(items)``, written out: about half the time, and part of the recipe.

    How Python shuffles may change with its version; which words a view hides may not.
    """
    draw_bits = generator.getrandbits
    for last in range(len(items) - 1, 0, -1):
        bits = (last + 1).bit_length()
        other = draw_bits(bits)
        while other > last:
            other = draw_bits(bits)
        items[last], items[other] = items[other], items[last]


@dataclass(frozen=True, slots=True)
class TextViews:
    """All text views of one sample, before they are written out.

    Attributes:
        text: view 0, white space included.
        words: its white-space words, of which the other views are made.
        masked: for each of views 1.. the positions in ``words`` that it hides.
    """

    text: str
    words: list[str]
    masked: list[list[int]]

    def texts(self) -> list[str]:
        """The V texts. Of a text without words, views 1.. are empty."""
        return [self.text, *(self._masked_view(positions) for positions in self.masked)]

    def _masked_view(self, positions: Sequence[int]) -> str:
        """The words joined by one space, with these replaced by ``[MASK]``."""
        view = list(self.words)
        for position in positions:
            view[position] = MASK
        return " ".join(view)


def draw(text: str, base_seed: int, index: int, views: int) -> TextViews:
    """Draw the text views of one sample.

    Args:
        text: the synopsis; view 0 is this very text, white space included.
        base_seed: the build's seed.
        index: the sample's index.
        views: V, the number of views with the clean one.
    """
    words = text.split()
    seeds = (view_seed(base_seed, index, view, "text") for view in range(1, views))
    return TextViews(text, words, [masked_words(words, seed) for seed in seeds])
