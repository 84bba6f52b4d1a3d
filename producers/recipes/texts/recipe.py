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
    """How the views of every text are made."""

    modality: ClassVar[Modality] = "text"

    @abstractmethod
    def draw(self, text: str, seeds: Sequence[int], *, has_clean: bool) -> TextViews:
        """Draws the views of one sample.

        Args:
            text: the clean text, view 0, including its white space.
            seeds: seed of each other view, below 2³².
            has_clean: whether view 0 is one of the views.
        """
