"""The plots, as SVG images; the only module that imports matplotlib.

Text and axes share a colour that nothing else has; for a dark page it is replaced by a light one.
The background is transparent, and the other colours have a middle brightness, so that they are
legible on light pages, dark pages and paper. The images contain no date, machine name or random
identifier: equal numbers give equal bytes.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from manyviews.operations.installing import extra
from manyviews.operations.report.content import Plot

Values = npt.NDArray[Any]

# Colours of the series, with a contrast of at least 3:1 on white and on the dark background.
COLOURS = (
    *("#3b7fc4", "#d0782a", "#3a9360", "#c9504f"),
    *("#8a68cc", "#2b9299", "#c55b96", "#868686"),
)
_LIGHT_INK, _DARK_INK = "#1d2126", "#e4e7eb"  # the text colours of the page
_WIDTH = 3.9  # inches of 96 pixels
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _LIGHT_INK,
    "axes.edgecolor": _LIGHT_INK,
    "axes.labelcolor": _LIGHT_INK,
    "xtick.color": _LIGHT_INK,
    "ytick.color": _LIGHT_INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.0,
    "legend.columnspacing": 1.0,
}
# More dots than this are rasterized: a vector shape takes 100 bytes in each of the two images.
_MOST_SHAPES, _DOTS_PER_INCH = 200, 144
_MOST_LETTERS = 24  # of a name in a plot
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def require() -> None:
    """Checks that matplotlib is installed.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"The report needs matplotlib, which is not installed.\nInstall it: {extra('report')}"
        ) from None


def histograms(name: str, xlabel: str, series: Sequence[tuple[str, Values]]) -> Plot:
    """Draws overlaid histograms of area one; at least one series must not be empty."""
    values = [data for _, data in series if len(data)]
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # too narrow for several bins
        low, high = low - 0.5, high + 0.5
    bins = round(2 * min(map(len, values)) ** 0.5)
    edges = np.linspace(low, high, 1 + min(60, max(8, bins)))

    def draw(axes: Any) -> None:
        for (label, data), colour in zip(series, COLOURS, strict=False):
            if len(data):
                options = {"density": True, "histtype": "stepfilled", "label": label}
                axes.hist(data, edges, color=_faded(colour), edgecolor=colour, **options)
        axes.set_xlabel(xlabel)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    return _plot(name, draw, legend=len(series) > 1)


def dimensions(name: str, sigma: Values, mean: Values) -> Plot:
    """Draws the deviation and the mean of every dimension, sorted by deviation."""
    order = np.argsort(sigma, kind="stable")
    floor = max(float(sigma.max()), float(np.abs(mean).max()), 1e-30) * 1e-9

    def draw(axes: Any) -> None:
        at = np.arange(1, len(order) + 1)
        size = 4.0 if len(at) < 200 else 2.0
        dots = {"linestyle": "none", "marker": "o", "markersize": size, "markeredgewidth": 0}
        dots["rasterized"] = len(at) > _MOST_SHAPES
        axes.plot(at, np.maximum(np.abs(mean[order]), floor), color=COLOURS[1], **dots)
        axes.plot(at, np.maximum(sigma[order], floor), color=COLOURS[0], linewidth=2)
        axes.lines[0].set_label("absolute mean")
        axes.lines[1].set_label("standard deviation")
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("dimensions, sorted by deviation")

    return _plot(name, draw, legend=True)


def scatter(name: str, points: Values, groups: Sequence[str], group: Values) -> Plot:
    """Draws points coloured by group; the last group, all other points, is in the background."""

    def draw(axes: Any) -> None:
        last = len(groups) - 1
        side = min(24.0, max(6.0, 3000.0 / len(points)))  # square points
        for at, name in enumerate(groups):
            chosen = points[group == at]
            is_rest = at == last and last > 0
            options = {"s": side, "alpha": 0.8, "linewidths": 0, "zorder": 1 if is_rest else 2}
            options["rasterized"] = len(points) > _MOST_SHAPES
            if len(chosen):
                colour = COLOURS[-1] if is_rest else COLOURS[at]
                axes.scatter(
                    chosen[:, 0], chosen[:, 1], color=colour, label=_short(name), **options
                )
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")

    return _plot(name, draw, legend=len(groups) > 1, height=3.5)


def bars(name: str, names: Sequence[str], values: Values, xlabel: str) -> Plot:
    """Draws horizontal bars, the first on top."""

    def draw(axes: Any) -> None:
        at = np.arange(len(names))
        axes.barh(at, values, color=COLOURS[0], height=0.72)
        axes.set_yticks(at, [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)

    return _plot(name, draw, height=0.7 + 0.2 * len(names))


def heat(name: str, names: Sequence[str], shares: Values) -> Plot:
    """Draws a square matrix of shares in [0, 1]; a larger share has a stronger colour."""

    def draw(axes: Any) -> None:
        from matplotlib.colors import to_rgb

        rgba = np.empty((*shares.shape, 4))
        rgba[..., :3], rgba[..., 3] = to_rgb(COLOURS[0]), np.round(shares, 2)
        axes.pcolormesh(rgba, edgecolors="none", linewidth=0, rasterized=True)
        at = np.arange(len(names)) + 0.5
        short = [_short(name) for name in names]
        axes.set_xticks(at, short, rotation=90)
        axes.set_yticks(at, short)
        axes.tick_params(length=0, labelsize=7)
        axes.invert_yaxis()
        axes.set_aspect("equal")

    return _plot(name, draw, height=3.9)


def throughput(name: str, hours: Values, rate: Values, waiting: Values, starts: Values) -> Plot:
    """Draws samples per second and the share of waiting over time, with dotted run starts."""
    unit, factor = ("minutes", 60.0) if hours[-1] < 2 else ("hours", 1.0)

    def draw(axes: Any) -> None:
        axes.plot(hours * factor, rate, color=COLOURS[0], label="samples/s", linewidth=1.6)
        if len(hours) == 1:
            axes.plot(hours * factor, rate, color=COLOURS[0], marker="o", linestyle="none")
        axes.set_ylim(0, None)
        axes.set_xlim(0, None)
        axes.set_xlabel(f"{unit} of work")
        axes.set_ylabel("samples/s", color=COLOURS[0])
        for start in starts[1:] * factor:
            axes.axvline(start, color=_LIGHT_INK, linestyle=":", linewidth=0.8)
        right = axes.twinx()
        right.fill_between(hours * factor, waiting * 100, color=_faded(COLOURS[1]), linewidth=0)
        right.set_ylim(0, 100)
        right.set_ylabel("% waiting for producers", color=COLOURS[1])

    return _plot(name, draw)


def _short(name: str) -> str:
    """A name as text of a plot: printable, not long, and not hidden, as names with ``_`` are."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    shown = shown if len(shown) <= _MOST_LETTERS else f"{shown[: _MOST_LETTERS - 1]}…"
    return f" {shown}" if shown.startswith("_") else shown


def _faded(colour: str) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    red, green, blue, _ = to_rgba(colour)
    return red, green, blue, 0.4


def _plot(
    name: str,
    draw: Callable[[Any], None],
    *,
    legend: bool = False,
    height: float = 2.5,
) -> Plot:
    """Draws a plot on new axes; ``name`` must be unique on the page."""
    with _settings(name):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if legend:
            rows = 2 if len(axes.get_legend_handles_labels()[1]) > 4 else 1
            count = -(-len(axes.get_legend_handles_labels()[1]) // rows)
            figure.legend(loc="outside upper left", ncols=count, markerscale=1.5, handletextpad=0.3)
        out = io.StringIO()
        figure.savefig(out, format="svg", dpi=_DOTS_PER_INCH, metadata=_NO_METADATA)
    light = out.getvalue()
    return Plot(name, _address(light), _address(light.replace(_LIGHT_INK, _DARK_INK)))


def _address(svg: str) -> str:
    """The ``data:`` address of an SVG image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


@contextmanager
def _settings(name: str) -> Iterator[None]:
    """Uses matplotlib's defaults and ``_SETTINGS``, and ignores any matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page's fonts draw the text; matplotlib only measures it.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": name})
        yield
