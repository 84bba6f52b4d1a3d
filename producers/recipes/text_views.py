"""The text recipe: view 0 is the synopsis, every other view hides 15% of its words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.records import view_seed

# Renamed whenever a masked view changes, so that no store mixes two recipes.
TEXT_RECIPE = "mask-15-1"

MASK = "[MASK]"
MASK_SHARE = 0.15


def masked_words(words: Sequence[str], seed: int) -> list[int]:
    """Draw the words that a view hides.

    Args:
        words: words of the text, separated by white space; only their number matters.
        seed: seed of the view.

    Returns:
        Distinct positions in ``words``, in the order drawn: 15% of the words, halves rounded to
        even, at least one; empty if there are no words.
    """
    if not words:
        return []
    positions = list(range(len(words)))
    _shuffle(positions, random.Random(seed))
    return positions[: max(1, round(MASK_SHARE * len(words)))]


def _shuffle(items: list[int], generator: random.Random) -> None:
    """Python's ``generator.shuffle(items)``, in about half the time, as part of the recipe.

    Another version of Python may shuffle differently; the hidden words must not change.
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
    """Text views of one sample, in a compact form.

    Attributes:
        text: view 0, including its white space.
        words: its words, separated by white space, from which the other views are built.
        masked: for each view except view 0, the positions in ``words`` that it hides.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    words: list[str]
    masked: list[list[int]]
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The text of each view. For a text without words, all views except view 0 are empty."""
        return [*self.clean, *(self._masked_view(positions) for positions in self.masked)]

    def _masked_view(self, positions: Sequence[int]) -> str:
        """The words joined by one space, with ``[MASK]`` at these positions."""
        view = list(self.words)
        for position in positions:
            view[position] = MASK
        return " ".join(view)


def draw(text: str, base_seed: int, index: int, views: int, first_view: int = 0) -> TextViews:
    """Draw the text views of one sample, or only the last ones.

    Args:
        text: the synopsis; view 0 is this text, including its white space.
        base_seed: seed of the build.
        index: index of the sample.
        views: V, number of views including the clean one.
        first_view: index of the first view to draw, at most V-1.
    """
    words = text.split()
    numbers = range(max(first_view, 1), views)
    masked = [masked_words(words, view_seed(base_seed, index, view, "text")) for view in numbers]
    return TextViews(text, words, masked, has_clean=first_view == 0)
