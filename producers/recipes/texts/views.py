"""Text views of one sample, in a compact form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MASK = "[MASK]"


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
class HiddenWords:
    """Views that hide words of view 0.

    Attributes:
        text: view 0, including its white space.
        words: its words, separated by white space, from which the other views are built.
        hidden: for each view except view 0, the positions in ``words`` that it hides.
        token: what replaces a hidden word.
        has_clean: whether view 0 is one of the views.
    """

    text: str
    words: list[str]
    hidden: list[list[int]]
    token: str = MASK
    has_clean: bool = True

    @property
    def clean(self) -> list[str]:
        """A list of view 0, or an empty list if it is not one of the views."""
        return [self.text] if self.has_clean else []

    def texts(self) -> list[str]:
        """The text of each view. For a text without words, all views except view 0 are empty."""
        return [*self.clean, *(self._view(positions) for positions in self.hidden)]

    def _view(self, positions: Sequence[int]) -> str:
        """The words joined by one space, with the token at these positions."""
        view = list(self.words)
        for position in positions:
            view[position] = self.token
        return " ".join(view)
