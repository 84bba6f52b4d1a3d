"""Pieces of the page. Every text goes through :func:`escape`: stems and names are strangers'."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_ROW_HEAD = 'th scope="row"'
_NAME = 20  # characters of a text that no column should be too narrow for


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: object) -> str:
    """A value as HTML text: markup is left as it is, everything else shows what it holds.

    Control characters, marks that turn the writing direction and lone surrogates are spelt out.
    """
    if isinstance(value, Markup):
        return value
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return html.escape(shown)


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table whose first column names its rows; it scrolls by itself where it is too wide."""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join(
        "<tr>" + _cell(_ROW_HEAD, first) + "".join(_cell("td", cell) for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return Markup(
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(tag: str, value: object) -> str:
    """A cell; a long text may break anywhere, a name never."""
    is_long = len(str(value)) > _NAME and not isinstance(value, Markup)
    kind = ' class="long"' if is_long else ""
    return f"<{tag}{kind}>{escape(value)}</{tag.split()[0]}>"


def figure(svg: str, caption: str) -> Markup:
    """A plot with what it shows."""
    return Markup(f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>")


def row(parts: Iterable[Markup]) -> Markup:
    """Figures and tables side by side where there is room."""
    return Markup('<div class="row">\n' + "\n".join(parts) + "\n</div>")


def paragraph(text: str) -> Markup:
    """A paragraph."""
    return Markup(f"<p>{escape(text)}</p>")


def section(name: str, title: str, *parts: Markup) -> Markup:
    """A section that can be linked to."""
    body = "\n".join(parts)
    return Markup(f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n{body}\n</section>')


def picture(data: str, text: str) -> Markup:
    """A small picture from its ``data:`` address."""
    return Markup(f'<img src="{escape(data)}" alt="{escape(text)}">')


def number(value: float | None, digits: int = 4) -> str:
    """A number with this many significant digits; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}"
