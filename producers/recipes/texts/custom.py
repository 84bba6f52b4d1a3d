"""A function of the user as a recipe of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from producers.recipes.custom import Custom
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import TextViews


@dataclass(frozen=True, slots=True)
class MadeTexts:
    """Views that were made as whole texts.

    Attributes:
        text: view 0, including its white space.
        made: the other views.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    made: list[str]
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The text of each view."""
        return [*self.clean, *self.made]


@dataclass(frozen=True)
class CustomText(Custom, TextRecipe):
    """Every view is made by a function of the user: ``(str, numpy Generator) -> str``.

    A text without words has empty views, and the function is not called for it.
    """

    def prepare(self) -> None:
        """Imports the function."""
        self.calls(_text)

    def draw(self, text: str, seeds: Sequence[int], *, has_clean: bool) -> TextViews:
        """The views of a text; see :class:`TextRecipe`.

        Raises:
            BadSampleError: the function refuses the text.
            RecipeError: the function failed.
        """
        if not text.split():
            return MadeTexts(text, [""] * len(seeds), has_clean)
        made = self.calls(_text).views(lambda: text, seeds)
        return MadeTexts(text, list(made), has_clean)


def _text(returned: Any) -> str:
    """The returned text; raises an error if it is none, or cannot be written as UTF-8."""
    if not isinstance(returned, str):
        raise TypeError(f"{type(returned).__name__}, not a str")
    try:
        returned.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValueError(f"a text with half of a surrogate pair at character {e.start}") from None
    return str(returned)
