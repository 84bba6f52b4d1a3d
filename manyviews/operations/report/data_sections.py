"""The sections about the data and the build: genres, split, bad samples, throughput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.imdb.genres import CLASS_NAMES
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from manyviews.operations.report import plots
from manyviews.operations.report.content import Figure, Picture, Section, Table, number
from manyviews.operations.report.inputs import LISTED, BadRow
from manyviews.operations.report.runs import Throughput

_PAIRS = 10
Labels = npt.NDArray[np.float32]
Parts = Mapping[str, npt.NDArray[np.int64]]


def genres(labels: Labels | None, parts: Parts) -> Section:
    """The frequencies of genres, and of pairs of genres."""
    if labels is None:
        advice = "Give --labels-dir, the folder that `labels` wrote, to see the genres."
        return Section("genres", "Genres", advice)
    hot = (labels > 0.5).astype(np.int64)
    counts = hot.sum(axis=0)
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    if not order:
        return Section("genres", "Genres", "No sample has any of the 23 genres.")
    names = [CLASS_NAMES[c] for c in order]
    plot = plots.bars("samples of each genre", names, counts[order], "samples")
    together = hot.T @ hot  # [23, 23]
    shares = together / np.maximum(counts, 1)[:, None]
    heat = plots.heat("genres that occur together", names, shares[np.ix_(order, order)])
    return Section(
        "genres",
        "Genres",
        f"{amount(len(hot), 'sample')} with {hot.sum(axis=1).mean():.2f} of the 23 genres "
        "on average. "
        f"Genres without a sample: {int((counts == 0).sum())}. "
        f"Samples without a genre: {int((~hot.any(axis=1)).sum()):,}.",
        [
            Figure(plot, "Samples of each genre."),
            Figure(heat, "Share of the row genre's samples that also have the column's genre."),
        ],
        [_frequencies(hot, order, parts), _pairs(together, counts)],
    )


def _frequencies(hot: npt.NDArray[np.int64], order: Sequence[int], parts: Parts) -> Table:
    """The number of samples of each genre, and its frequency in each part of the split."""
    shares = [hot[samples].mean(axis=0) for samples in parts.values() if len(samples)]
    rows = []
    for column in order:
        count = int(hot[:, column].sum())
        cells = [f"{share[column]:.1%}" for share in shares]
        rows.append((CLASS_NAMES[column], f"{count:,}", f"{count / len(hot):.1%}", *cells))
    named = [f"of {name}" for name, samples in parts.items() if len(samples)]
    return Table("Genres", ("genre", "samples", "of all", *named), rows)


def _pairs(together: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Table:
    """The most frequent pairs of genres."""
    upper = [(int(together[a, b]), a, b) for a in range(len(counts)) for b in range(a)]
    most = sorted((p for p in upper if p[0]), key=lambda p: (-p[0], p[2], p[1]))[:_PAIRS]
    rows = [(f"{CLASS_NAMES[b]} and {CLASS_NAMES[a]}", f"{count:,}") for count, a, b in most]
    return Table("Most frequent pairs", ("pair", "samples"), rows)


def split(store: FeatureStore, parts: Parts) -> list[Section]:
    """The number of samples in each part of the split; empty without a split."""
    if not parts:
        return []
    bad = {b.index for b in store.bad_inputs}
    rows: list[tuple[object, ...]] = [
        (name, f"{len(samples):,}", f"{len(samples) / store.spec.samples:.1%}", len(bad & of))
        for name, samples in parts.items()
        for of in [set(samples.tolist())]
    ]
    left = store.spec.samples - sum(len(samples) for samples in parts.values())
    rows.append(("in no part", f"{left:,}", f"{left / store.spec.samples:.1%}", "–"))
    head = ("part", "samples", "of all", "with bad inputs")
    return [Section("split", "Split", Table("The split", head, rows))]


def bad_samples(store: FeatureStore, rows: Sequence[BadRow]) -> Section:
    """The inputs that placeholders replace."""
    bad = store.bad_inputs
    if not bad:
        return Section("bad", "Bad samples", "None: every input could be used.")
    ranked = sorted(Counter((b.modality, b.reason) for b in bad).items(), key=lambda i: (-i[1], i))
    counts = [(f"{modality} {reason}", f"{count:,}") for (modality, reason), count in ranked]
    pictures = any(r.picture or r.note for r in rows)
    listed = []
    for row in rows:
        cells: list[object] = [row.stem, row.bad.index, row.bad.modality]
        cells += [row.bad.reason, row.bad.detail]
        if pictures:
            cells.append(_pictured(row))
        listed.append(cells)
    head = ["stem", "sample", "input", "reason", "detail", *(["picture"] if pictures else [])]
    more = f" The first {LISTED:,} are listed." if len(bad) > LISTED else ""
    advice = "" if pictures else " Give --data-dir to see their posters."
    return Section(
        "bad",
        "Bad samples",
        f"Unusable inputs: {len(bad):,}. A black image or the usable part of the text replaces "
        f"each, and FeatureDataset leaves their samples out by default.{more}{advice}",
        Table("Reasons", ("reason", "inputs"), counts),
        Table("Bad inputs", head, listed),
    )


def _pictured(row: BadRow) -> object:
    if not row.picture:
        return row.note
    return Picture(row.picture, f"{row.note} of {row.stem}")


def speed(logged: Throughput) -> Section:
    """Throughput over time."""
    if not logged.hours:
        reason = "No run log records a chunk; a store copied without records/runs has no logs."
        return Section("throughput", "Throughput", reason)
    hours, rate, waiting = map(np.array, (logged.hours, logged.samples_per_s, logged.waiting))
    plot = plots.throughput("throughput", hours, rate, waiting, np.array(logged.starts))
    rows = [
        ("chunks built", f"{len(hours):,}"),
        ("runs that built them", logged.runs),
        ("hours of work", number(float(hours[-1]), 3)),
        ("samples/s, median of chunks", number(float(np.median(rate)), 3)),
        ("samples/s, slowest chunk", number(float(rate.min()), 3)),
        ("waiting for producers, mean", f"{waiting.mean():.0%}"),
        ("unreadable log lines", logged.skipped),
    ]
    return Section(
        "throughput",
        "Throughput",
        "From the run logs, one point per chunk; a chunk that was rebuilt counts again. A large "
        "share of waiting means that producers are the slower side: give them more cores. Dotted "
        "lines mark the start of a run after an interruption.",
        [
            Figure(plot, "Samples per second, and below them the share of time spent waiting."),
            Table("Throughput", ("", ""), rows),
        ],
    )
