"""What every recipe of texts does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from featurestore.records import Modality
from producers.recipes.recipe import Recipe
from producers.recipes.texts.views import TextViews


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """How the views of every text are made.

    Attributes:
        every_text: whether the views are made of all texts of a sample, not of the clean one alone.
        hides_words: whether the views are the clean text with some words hidden, whose ids can be
            joined from those of the words.
    """

    modality: ClassVar[Modality] = "text"
    every_text: ClassVar[bool] = False
    hides_words: ClassVar[bool] = False

    @property
    def needs_mask_token(self) -> bool:
        """Whether every tokenizer must have a mask token."""
        return False

    @abstractmethod
    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> TextViews:
        """Draws the views of one sample.

        Args:
            text: the clean text, view 0, including its white space.
            views: numbers of the other views, in ascending order.
            seeds: seed of each of them, below 2³².
            has_clean: whether view 0 is one of the views.
            texts: all texts of the sample if ``every_text``; empty if it has no usable text.
        """
