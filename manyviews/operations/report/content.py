"""What the page holds, as plain values; ``page.html.jinja`` says how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a table: its ``data:`` address, and what it shows."""

    data: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows, and its ``data:`` addresses for a light page, or paper, and a dark one."""

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
    """A section that can be linked to.

    Args:
        name: its anchor.
        title: its heading.
        parts: paragraphs, figures and tables; those of a list are side by side where there is room.
    """

    def __init__(self, name: str, title: str, *parts: Part | Sequence[Part]) -> None:
        self.name, self.title, self.parts = name, title, parts


def number(value: float | None, digits: int = 4) -> str:
    """A number with this many significant digits; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"
