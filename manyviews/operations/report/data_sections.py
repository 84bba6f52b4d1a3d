"""The sections about the data and the build: split, bad samples, throughput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.storage.store import FeatureStore
from manyviews.operations.report import plots
from manyviews.operations.report.content import Figure, Picture, Section, Table, number
from manyviews.operations.report.inputs import LISTED, BadRow
from manyviews.operations.report.runs import Throughput

Parts = Mapping[str, npt.NDArray[np.int64]]


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
    """The section with the unusable inputs, counted by reason and listed; one line if none."""
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
    advice = "" if pictures else " Give --data-dir, --data or --config to see their images."
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
        ("chunks built", f"{logged.chunks:,}"),
        ("runs that built them", logged.runs),
        ("hours of work", number(float(hours[-1]), 3)),
        ("samples/s, median", number(float(np.median(rate)), 3)),
        ("samples/s, least", number(float(rate.min()), 3)),
        ("waiting for producers, mean", f"{waiting.mean():.0%}"),
        ("unreadable log lines", logged.skipped),
    ]
    return Section(
        "throughput",
        "Throughput",
        "From the run logs, one point per chunk; a chunk that was rebuilt counts again. The rates "
        "of workers that built at the same time are added up. A large share of waiting means that "
        "producers are the slower side: give them more cores. Dotted lines mark the start of a run "
        "after an interruption.",
        [
            Figure(plot, "Samples per second, and below them the share of time spent waiting."),
            Table("Throughput", ("", ""), rows),
        ],
    )
