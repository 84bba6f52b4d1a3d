"""What the page holds, as plain values; ``page.html.jinja`` says how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture in a table.

    Attributes:
        data: its ``data:`` address.
        text: what it shows.
    """

    data: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing in two colours of ink.

    Attributes:
        name: what it shows, for who cannot see it.
        light: ``data:`` address of an SVG for a light page and for paper.
        dark: the same for a dark page.
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
    """A table whose first column names its rows.

    Attributes:
        caption: the caption.
        head: the names of the columns.
        rows: texts, numbers and pictures; nothing in a text is markup.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


Part = str | Figure | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A section that can be linked to.

    Attributes:
        name: its anchor.
        title: its heading.
        parts: paragraphs, figures and tables; those of a list are side by side where there is room.
    """

    name: str
    title: str
    parts: Sequence[Part | Sequence[Part]]


def section(name: str, title: str, *parts: Part | Sequence[Part]) -> Section:
    """A section of these parts."""
    return Section(name, title, parts)


def number(value: float | None, digits: int = 4) -> str:
    """A number with this many significant digits; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"
