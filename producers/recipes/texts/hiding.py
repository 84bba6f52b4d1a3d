"""Recipes that hide words of a text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from featurestore.errors import ConfigError
from producers.recipes.recipe import require_share
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import MASK, MODEL, HiddenWords


@dataclass(frozen=True)
class Mask(TextRecipe):
    """Every view masks some of the words, as published.

    Attributes:
        share: share of the words that a view hides, at least one word.
        token: what replaces each of them; ``model`` for the mask token of each model's tokenizer.
    """

    name: ClassVar[str] = "mask"
    version: ClassVar[int] = 1
    hides_words: ClassVar[bool] = True

    share: float = 0.15
    token: str = MASK

    def __post_init__(self) -> None:
        """Checks the parameters.

        Raises:
            ConfigError: the share is not above 0 and at most 1, or the token is not a text without
                white space around it.
        """
        require_share(self, "share", above=0.0)
        is_text = self.token and self.token == self.token.strip()
        if not is_text or any("\ud800" <= c <= "\udfff" for c in self.token):
            raise ConfigError(
                f'[recipe.text] token is a text such as "{MASK}", without white space around it, '
                f'or "{MODEL}"; found {self.token!r}.\n'
                'The recipe "drop" leaves words out instead of masking them.'
            )

    @property
    def needs_mask_token(self) -> bool:
        """Whether every tokenizer must have a mask token."""
        return self.token == MODEL

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> HiddenWords:
        """The views of a text; see :class:`TextRecipe`."""
        del views, texts
        words = text.split()
        hidden = [hidden_words(len(words), self.share, seed) for seed in seeds]
        return HiddenWords(text, words, hidden, self.token, has_clean)


@dataclass(frozen=True)
class Drop(TextRecipe):
    """Every view leaves out some of the words.

    These are the words that ``Mask`` hides with the same share and seed, except that at least one
    word stays: a text of one word keeps it.

    Attributes:
        share: share of the words that a view leaves out, at least one of two or more words.
    """

    name: ClassVar[str] = "drop"
    version: ClassVar[int] = 1
    hides_words: ClassVar[bool] = True

    share: float = 0.15

    def __post_init__(self) -> None:
        """Checks the share.

        Raises:
            ConfigError: it is not above 0 and at most 1.
        """
        require_share(self, "share", above=0.0)

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> HiddenWords:
        """The views of a text; see :class:`TextRecipe`."""
        del views, texts
        words = text.split()
        most = max(0, len(words) - 1)
        hidden = [hidden_words(len(words), self.share, seed)[:most] for seed in seeds]
        return HiddenWords(text, words, hidden, None, has_clean)


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
    shuffle(positions, random.Random(seed))
    return positions[: max(1, round(share * words))]


def shuffle(items: list[int], generator: random.Random) -> None:
    """Python's ``generator.shuffle(items)``, in about half the time, as part of the recipes.

    Another version of Python may shuffle differently; the views must not change.
    """
    draw_bits = generator.getrandbits
    for last in range(len(items) - 1, 0, -1):
        bits = (last + 1).bit_length()
        other = draw_bits(bits)
        while other > last:
            other = draw_bits(bits)
        items[last], items[other] = items[other], items[last]
