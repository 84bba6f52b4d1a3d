"""The text recipe: view 0 is the synopsis, every other view hides 15% of its words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.records import view_seed

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
    """Text views of one sample, before they are written out.

    Attributes:
        text: view 0, white space included.
        words: its white-space words, of which the other views are made.
        masked: for each view but view 0 the positions in ``words`` that it hides.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    words: list[str]
    masked: list[list[int]]
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """View 0, where it is one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The texts, one a view. Of a text without words, all but view 0 are empty."""
        return [*self.clean, *(self._masked_view(positions) for positions in self.masked)]

    def _masked_view(self, positions: Sequence[int]) -> str:
        """The words joined by one space, with these replaced by ``[MASK]``."""
        view = list(self.words)
        for position in positions:
            view[position] = MASK
        return " ".join(view)


def draw(text: str, base_seed: int, index: int, views: int, first_view: int = 0) -> TextViews:
    """Draw the text views of one sample, or the last of them.

    Args:
        text: the synopsis; view 0 is this very text, white space included.
        base_seed: the build's seed.
        index: the sample's index.
        views: V, the number of views with the clean one.
        first_view: the first view that is drawn, up to V-1.
    """
    words = text.split()
    made = range(max(first_view, 1), views)
    masked = [masked_words(words, view_seed(base_seed, index, view, "text")) for view in made]
    return TextViews(text, words, masked, has_clean=first_view == 0)
