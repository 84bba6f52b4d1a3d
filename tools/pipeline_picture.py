"""Draw the pipeline as ``docs/pipeline.svg``.

    python tools/pipeline_picture.py > docs/pipeline.svg

Colours follow the reader's light or dark scheme. A test compares the file with this program.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from html import escape

_STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
  .title { font-weight: 600 }
  .small { font-size: 12px; fill: #59636e }
  rect { fill: #f6f8fa; stroke: #59636e; rx: 6 }
  .store { fill: #ddf4ff; stroke: #0969da }
  path { stroke: #59636e; fill: none; stroke-width: 1.5; marker-end: url(#head) }
  #head path { fill: #59636e; stroke: none; marker-end: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .small { fill: #9198a1 }
    rect { fill: #151b23; stroke: #9198a1 }
    .store { fill: #0d2240; stroke: #4493f8 }
    path { stroke: #9198a1 }
    #head path { fill: #9198a1 }
  }
"""
_LINE = 18  # pixels from one line of text to the next


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the picture.

    Attributes:
        left, top, width, height: its place, in pixels.
        title: its first line.
        lines: the lines below, smaller.
        kind: its class in the style sheet.
    """

    left: int
    top: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...]
    kind: str = ""

    def svg(self) -> str:
        """The box with its text centred."""
        place = f'x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}"'
        middle = self.left + self.width // 2
        first = self.top + (self.height - _LINE * len(self.lines)) // 2 + 5
        texts = [_text(middle, first, self.title, "title")]
        texts += [
            _text(middle, first + _LINE * n, line, "small") for n, line in enumerate(self.lines, 1)
        ]
        return "\n".join([f'<rect {place} class="{self.kind}"/>', *texts])


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def _arrow(start: Box, end: Box) -> str:
    """A line from the right side of one box to the left side of another."""
    x1, y1 = start.left + start.width, start.top + start.height // 2
    x2, y2 = end.left - 2, end.top + end.height // 2
    half = (x1 + x2) // 2
    return f'<path d="M{x1} {y1} H{half} V{y2} H{x2}"/>'


INPUTS = Box(10, 90, 120, 90, "Inputs", ("images", "texts"))
PRODUCERS = Box(
    165, 80, 150, 110, "Producers", ("CPU processes:", "decode, augment,", "mask words")
)
QUEUE = Box(350, 90, 120, 90, "Queue", ("shared memory,", "bounded"))
CONSUMER = Box(
    505, 80, 150, 110, "Consumer", ("frozen backbones", "in fixed batches,", "CPU or GPU")
)
STORE = Box(
    690,
    80,
    150,
    110,
    "Feature store",
    ("Zarr v3: samples", "x views x features,", "resumable"),
    "store",
)
READERS = (
    Box(885, 10, 185, 60, "FeatureDataset", ("batches while training",)),
    Box(885, 80, 185, 60, "materialize", ("the paper's .npy files",)),
    Box(885, 150, 185, 60, "probe, report, export", ("results to look at and share",)),
    Box(885, 220, 185, 60, "verify", ("every byte checked",)),
)


def picture() -> str:
    """The picture, as SVG."""
    line = (INPUTS, PRODUCERS, QUEUE, CONSUMER, STORE)
    arrows = [_arrow(a, b) for a, b in itertools.pairwise(line)]
    arrows += [_arrow(STORE, reader) for reader in READERS]
    label = "Inputs, producers, queue, consumer, feature store, and what reads the store"
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 290" role="img"'
            f' aria-label="{label}">',
            f"<style>{_STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
            ' markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            *arrows,
            *(box.svg() for box in (*line, *READERS)),
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    print(picture(), end="")
