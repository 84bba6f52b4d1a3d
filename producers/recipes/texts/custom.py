"""A function of the user as a recipe of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from producers.recipes.custom import Custom
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import TextViews, WholeTexts


@dataclass(frozen=True)
class CustomText(Custom, TextRecipe):
    """Every view is made by a function of the user: ``(str, numpy Generator) -> str``.

    A text without words has empty views, and the function is not called for it.
    """

    def prepare(self) -> None:
        """Imports the function."""
        self.calls(_text)

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> TextViews:
        """The views of a text; see :class:`TextRecipe`.

        Raises:
            BadSampleError: the function refuses the text.
            RecipeError: the function failed.
        """
        del views, texts
        if not text.split():
            return WholeTexts(text, [""] * len(seeds), has_clean)
        made = self.calls(_text).views(lambda: text, seeds)
        return WholeTexts(text, list(made), has_clean)


def _text(returned: Any) -> str:
    """The returned text; raises an error if it is none, or cannot be written as UTF-8."""
    if not isinstance(returned, str):
        raise TypeError(f"{type(returned).__name__}, not a str")
    try:
        returned.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValueError(f"a text with half of a surrogate pair at character {e.start}") from None
    return str(returned)
