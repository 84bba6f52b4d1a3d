"""Recipes whose views are texts of the collection as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import WholeTexts


@dataclass(frozen=True)
class CleanText(TextRecipe):
    """The clean view alone."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1

    @property
    def fixed_views(self) -> int:
        """1."""
        return 1

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> WholeTexts:
        """The clean text; see :class:`TextRecipe`."""
        del seeds, texts
        assert not views, views
        return WholeTexts(text, (), has_clean)


@dataclass(frozen=True)
class Given(TextRecipe):
    """The views are the sample's own texts, such as captions, paraphrases or translations.

    View v is text v mod n of the n texts of the sample, and view 0 the first. The collection's rule
    for the clean text must be ``first``.
    """

    name: ClassVar[str] = "given"
    version: ClassVar[int] = 1
    every_text: ClassVar[bool] = True

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> WholeTexts:
        """The texts of the sample; see :class:`TextRecipe`."""
        del seeds
        own = texts or [text]
        return WholeTexts(text, [own[view % len(own)] for view in views], has_clean)
