"""A contact sheet: one picture of all views of a sample, unscaled, each with its number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from manyviews.operations.replay.replay import Replay
from producers.recipes.images.geometry import Pixels

GAP = 8  # pixels around every cell
LABEL = 18  # height of the line of text above a cell, in pixels
POSTER = 480  # maximum length of the poster's longer side on the sheet, in pixels
COLUMNS = 10
TEXT = 200  # maximum length of the line of text above a sheet, in characters
_PAPER, _INK = (250, 250, 247), (60, 60, 60)


def png(pixels: Pixels | Image.Image) -> bytes:
    """Encodes a picture as PNG: lossless, with equal bytes for equal pixels."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Grid:
    """The positions of a sheet's cells.

    Attributes:
        count: number of augmented views, V - 1.
        size: side S of a view in pixels.
        top: top of the first row in pixels.
    """

    count: int
    size: int
    top: int

    @property
    def columns(self) -> int:
        """Number of cells per row."""
        return max(1, min(COLUMNS, self.count))

    @property
    def width(self) -> int:
        """Width of the sheet in pixels."""
        return GAP + self.columns * (self.size + GAP)

    @property
    def height(self) -> int:
        """Height of the sheet in pixels."""
        return self.top + -(-self.count // self.columns) * (self.size + GAP + LABEL)

    def cell(self, view: int) -> tuple[int, int]:
        """Left and top of a view's pixels, below its label."""
        row, column = divmod(view - 1, self.columns)
        left = GAP + column * (self.size + GAP)
        return left, self.top + row * (self.size + GAP + LABEL) + LABEL


def grid(replay: Replay) -> Grid:
    """The cells of a sample's sheet."""
    top = 2 * GAP + LABEL + _poster_size(replay)[1]
    return Grid(replay.settings.views - 1, replay.settings.size, top)


def sheet(replay: Replay) -> Image.Image:
    """Draws the sheet: the poster, scaled to fit, and below it views 1 to V - 1, unscaled.

    Returns:
        An image of mode ``RGB``.
    """
    cells = grid(replay)
    width = max(cells.width, _poster_size(replay)[0] + 2 * GAP)
    page = Image.new("RGB", (width, cells.height), _PAPER)
    draw, font = ImageDraw.Draw(page), _font()
    label = "0: clean" if replay.poster is not None else "0: placeholder"
    draw.text((GAP, GAP), label, _INK, font)
    shown = Image.fromarray(replay.pixels(0))
    page.paste(shown.resize(_poster_size(replay)), (GAP, GAP + LABEL))
    for view in range(1, replay.settings.views):
        left, top = cells.cell(view)
        draw.text((left, top - LABEL), str(view), _INK, font)
        page.paste(Image.fromarray(replay.pixels(view)), (left, top))
    return page


def stacked(replays: Sequence[Replay]) -> Image.Image:
    """The sheets of several samples, one below the other, each under its id and clean text.

    Returns:
        An image of mode ``RGB``.
    """
    pages = [(replay, sheet(replay)) for replay in replays]
    width = max(page.width for _, page in pages)
    height = sum(page.height + GAP + LABEL for _, page in pages)
    whole = Image.new("RGB", (width, height), _PAPER)
    draw, font, top = ImageDraw.Draw(whole), _font(), 0
    for replay, page in pages:
        heading = f"{replay.sample.stem}: {replay.texts[0]}"[:TEXT]
        draw.text((GAP, top + GAP), _drawable(heading), _INK, font)
        whole.paste(page, (0, top + GAP + LABEL))
        top += page.height + GAP + LABEL
    return whole


def _drawable(text: str) -> str:
    """The text in one line, with escapes for characters that the font lacks."""
    return " ".join(text.split()).encode("latin-1", "backslashreplace").decode("latin-1")


def _poster_size(replay: Replay) -> tuple[int, int]:
    """Width and height of the poster on the sheet."""
    if replay.poster is None:
        return replay.settings.size, replay.settings.size
    scale = min(1.0, POSTER / max(replay.poster.size))
    width, height = (max(1, round(side * scale)) for side in replay.poster.size)
    return width, height


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's built-in font, which has the digits and letters of the labels."""
    try:
        return ImageFont.load_default(13)
    except ImportError:  # Pillow without FreeType has only a bitmap font
        return ImageFont.load_default()
