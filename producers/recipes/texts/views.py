"""Text views of one sample, in a compact form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

MASK = "[MASK]"
MODEL = "model"
"""The token that is each tokenizer's own mask token."""


class TextViews(Protocol):
    """The views of one sample's text."""

    @property
    def text(self) -> str:
        """View 0, including its white space."""

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""

    def texts(self) -> list[str]:
        """The text of each view."""


@dataclass(frozen=True, slots=True)
class WholeTexts:
    """Views whose texts are written out.

    Attributes:
        text: view 0, including its white space.
        others: the text of each view except view 0.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    others: Sequence[str]
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The text of each view."""
        return [*self.clean, *self.others]


@dataclass(frozen=True, slots=True)
class HiddenWords:
    """Views that hide words of view 0.

    Attributes:
        text: view 0, including its white space.
        words: its words, separated by white space, from which the other views are built.
        hidden: for each view except view 0, the positions in ``words`` that it hides.
        token: what replaces a hidden word; ``MODEL`` for the mask token of the tokenizer that
            encodes the views; None if hidden words are left out, of which no view hides all.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    words: list[str]
    hidden: list[list[int]]
    token: str | None = MASK
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The text of each view. For a text without words, all views except view 0 are empty.

        ``MASK`` represents the mask token of a tokenizer that is not known here.
        """
        return [*self.clean, *(self._view(positions) for positions in self.hidden)]

    def for_tokenizer(self, mask_token: str) -> HiddenWords:
        """The views with the mask token of a tokenizer, if they need it.

        Raises:
            ValueError: they need it, and the tokenizer has none.
        """
        if self.token != MODEL:
            return self
        if not mask_token:
            raise ValueError("the views need a mask token, and the tokenizer has none")
        return replace(self, token=mask_token)

    def _view(self, positions: Sequence[int]) -> str:
        """The words joined by one space, with the token at these positions."""
        view: list[str | None] = list(self.words)
        token = MASK if self.token == MODEL else self.token
        for position in positions:
            view[position] = token
        return " ".join(word for word in view if word is not None)
