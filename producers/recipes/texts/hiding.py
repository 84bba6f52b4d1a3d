"""Recipes that hide words of a text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from producers.recipes.recipe import require_share
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import MASK, HiddenWords


@dataclass(frozen=True)
class Mask(TextRecipe):
    """Every view masks some of the words, as published.

    Attributes:
        share: share of the words that a view hides, at least one word.
        token: what replaces each of them.
    """

    name: ClassVar[str] = "mask"
    version: ClassVar[int] = 1

    share: float = 0.15
    token: str = MASK

    def __post_init__(self) -> None:
        """Checks the share.

        Raises:
            ConfigError: it is not above 0 and at most 1.
        """
        require_share(self, "share", above=0.0)

    def draw(self, text: str, seeds: Sequence[int], *, has_clean: bool) -> HiddenWords:
        """The views of a text; see :class:`TextRecipe`."""
        words = text.split()
        hidden = [hidden_words(len(words), self.share, seed) for seed in seeds]
        return HiddenWords(text, words, hidden, self.token, has_clean)


def hidden_words(words: int, share: float, seed: int) -> list[int]:
    """Draws the words that a view hides.

    Args:
        words: number of words of the text, separated by white space.
        share: share of the words to hide.
        seed: seed of the view.

    Returns:
        Distinct positions of words, in the order drawn: that share of the words, halves rounded to
        even, at least one; empty if there are no words.
    """
    if not words:
        return []
    positions = list(range(words))
    _shuffle(positions, random.Random(seed))
    return positions[: max(1, round(share * words))]


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
