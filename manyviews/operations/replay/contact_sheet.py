"""A contact sheet: every view of a sample on one picture, each at its own size, with its number."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from manyviews.operations.replay.replay import Replay
from producers.recipes.image_views import Pixels

GAP = 8  # pixels around every cell
LABEL = 18  # height of the line of text above a cell, in pixels
POSTER = 480  # the longest side of the poster on the sheet, in pixels
COLUMNS = 10
_PAPER, _INK = (250, 250, 247), (60, 60, 60)


def png(pixels: Pixels | Image.Image) -> bytes:
    """A picture as a PNG file: lossless, and the same bytes for the same pixels."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells of a sheet lie.

    Attributes:
        count: V - 1.
        size: S, the side of a view in pixels.
        top: where the first row begins, in pixels.
    """

    count: int
    size: int
    top: int

    @property
    def columns(self) -> int:
        """Cells in a row."""
        return max(1, min(COLUMNS, self.count))

    @property
    def width(self) -> int:
        """Of the sheet, in pixels."""
        return GAP + self.columns * (self.size + GAP)

    @property
    def height(self) -> int:
        """Of the sheet, in pixels."""
        return self.top + -(-self.count // self.columns) * (self.size + GAP + LABEL)

    def cell(self, view: int) -> tuple[int, int]:
        """Left and top of a view's pixels; its label is above them."""
        row, column = divmod(view - 1, self.columns)
        left = GAP + column * (self.size + GAP)
        return left, self.top + row * (self.size + GAP + LABEL) + LABEL


def grid(replay: Replay) -> Grid:
    """The cells of a sample's sheet."""
    top = 2 * GAP + LABEL + _poster_size(replay)[1]
    return Grid(replay.recipe.views - 1, replay.recipe.size, top)


def sheet(replay: Replay) -> Image.Image:
    """The poster at the top, shrunk to fit, and below it views 1.. with their pixels unchanged.

    Returns:
        Mode ``RGB``.
    """
    cells = grid(replay)
    width = max(cells.width, _poster_size(replay)[0] + 2 * GAP)
    page = Image.new("RGB", (width, cells.height), _PAPER)
    draw, font = ImageDraw.Draw(page), _font()
    label = "0: clean" if replay.poster is not None else "0: placeholder"
    draw.text((GAP, GAP), label, _INK, font)
    shown = Image.fromarray(replay.pixels(0))
    page.paste(shown.resize(_poster_size(replay)), (GAP, GAP + LABEL))
    for view in range(1, replay.recipe.views):
        left, top = cells.cell(view)
        draw.text((left, top - LABEL), str(view), _INK, font)
        page.paste(Image.fromarray(replay.pixels(view)), (left, top))
    return page


def _poster_size(replay: Replay) -> tuple[int, int]:
    """Width and height of the poster on the sheet."""
    if replay.poster is None:
        return replay.recipe.size, replay.recipe.size
    scale = min(1.0, POSTER / max(replay.poster.size))
    width, height = (max(1, round(side * scale)) for side in replay.poster.size)
    return width, height


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; its labels are digits and ASCII letters."""
    try:
        return ImageFont.load_default(13)
    except ImportError:  # a Pillow without FreeType has a bitmap font of one size
        return ImageFont.load_default()
