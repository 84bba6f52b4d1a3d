"""The content of the page as plain values; ``page.html.jinja`` defines its appearance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a table: its ``data:`` address and its alternative text."""

    data: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as two images with ``data:`` URLs.

    Attributes:
        name: the name, unique on the page.
        light: URL of the image for a light page and for printing.
        dark: URL of the image for a dark page.
    """

    name: str
    light: str
    dark: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot and its caption."""

    plot: Plot
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts, numbers and pictures, whose first column names its rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


Part = str | Figure | Table


class Section:
    """A section of the page.

    Args:
        name: the anchor of its links.
        title: the heading.
        parts: paragraphs, figures and tables; the parts of a list are side by side if they fit.
    """

    def __init__(self, name: str, title: str, *parts: Part | Sequence[Part]) -> None:
        self.name, self.title, self.parts = name, title, parts


def number(value: float | None, digits: int = 4) -> str:
    """Formats a number with ``digits`` significant digits, and None as a dash."""
    return "–" if value is None else f"{value:.{digits}g}"
