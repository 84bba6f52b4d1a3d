"""The section about the labels: genres, classes of any collection, or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.imdb.genres import CLASS_NAMES
from featurestore.labels.label_set import MULTI_LABEL, VALUE, LabelSet
from featurestore.wording import amount
from manyviews.operations.report import plots
from manyviews.operations.report.content import Figure, Section, Table, number

_PAIRS = 10
# Classes in a plot, whose names would overlap otherwise, and in a table.
_DRAWN, _LISTED = 40, 500
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
Parts = Mapping[str, npt.NDArray[np.int64]]


def labels(found: LabelSet | None, parts: Parts, advice: str) -> Section:
    """The frequencies of classes, and of pairs of them; or the distribution of values.

    Args:
        found: the labels of all samples, or None.
        parts: the samples of each part of the split.
        advice: what to do to see labels, if there are none.
    """
    if found is None:
        return Section("genres", "Genres", advice)
    if found.kind == VALUE:
        return _values(found, parts)
    return _classes(found, parts)


def noun_of(found: LabelSet) -> tuple[str, str]:
    """What the classes are called, in the singular and in the plural."""
    return ("genre", "genres") if found.classes == CLASS_NAMES else ("class", "classes")


def _classes(found: LabelSet, parts: Parts) -> Section:
    noun, nouns = noun_of(found)
    counts = found.counts()
    hot = (np.nan_to_num(found.rows[found.known]) > 0.5).astype(np.int64)
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    title = nouns.capitalize()
    if not order:
        return Section("genres", title, f"No sample has any of the {len(counts):,} {nouns}.")
    drawn = order[:_DRAWN]
    names = [found.classes[c] for c in drawn]
    plot = plots.bars(f"samples of each {noun}", names, counts[drawn], "samples")
    figures = [Figure(plot, f"Samples of each {noun}.")]
    tables = [_frequencies(found, order, parts)]
    if found.kind == MULTI_LABEL:
        together = hot.T @ hot  # [C, C]
        shares = together / np.maximum(counts, 1)[:, None]
        heat = plots.heat(f"{nouns} that occur together", names, shares[np.ix_(drawn, drawn)])
        caption = f"Share of the row {noun}'s samples that also have the column's {noun}."
        figures.append(Figure(heat, caption))
        tables.append(_pairs(found, together))
    return Section("genres", title, _summary(found, hot), figures, tables)


def _summary(found: LabelSet, hot: npt.NDArray[np.int64]) -> str:
    """The number of samples and classes, of classes without samples and samples without labels."""
    noun, nouns = noun_of(found)
    counts, samples = hot.sum(axis=0), amount(len(hot), "sample")
    text = f"{samples} with one of {len(counts):,} {nouns} each. "
    if found.kind == MULTI_LABEL:
        average = f"{hot.sum(axis=1).mean():.2f} of the {len(counts):,} {nouns} on average"
        text = f"{samples} with {average}. "
    text += f"{nouns.capitalize()} without a sample: {int((counts == 0).sum()):,}. "
    if found.kind == MULTI_LABEL:
        text += f"Samples without a {noun}: {int((~hot.any(axis=1)).sum()):,}. "
    return text + _unlabelled(found)


def _unlabelled(found: LabelSet) -> str:
    count = int((~found.known).sum())
    return f"Samples without a label: {count:,}." if count else ""


def _frequencies(found: LabelSet, order: Sequence[int], parts: Parts) -> Table:
    """The number of samples of each class, and its frequency in each part of the split."""
    noun, nouns = noun_of(found)
    known = {name: samples[found.known[samples]] for name, samples in parts.items()}
    used = {name: samples for name, samples in known.items() if len(samples)}
    shares = [found.rows[samples].mean(axis=0) for samples in used.values()]
    counts, total = found.counts(), int(found.known.sum())
    rows = []
    for column in order[:_LISTED]:
        cells = [f"{share[column]:.1%}" for share in shares]
        count = int(counts[column])
        rows.append((found.classes[column], f"{count:,}", f"{count / total:.1%}", *cells))
    title = nouns.capitalize()
    if len(order) > _LISTED:
        title = f"The {_LISTED:,} most frequent of {len(order):,} {nouns}"
    return Table(title, (noun, "samples", "of all", *(f"of {name}" for name in used)), rows)


def _pairs(found: LabelSet, together: npt.NDArray[np.int64]) -> Table:
    """The most frequent pairs of classes."""
    lower, upper = np.nonzero(np.tril(together, -1))
    counts = together[lower, upper]
    # The most frequent first, and of equal ones those of the first columns.
    most = np.lexsort((lower, upper, -counts))[:_PAIRS]
    rows = [
        (f"{found.classes[upper[i]]} and {found.classes[lower[i]]}", f"{int(counts[i]):,}")
        for i in most
    ]
    return Table("Most frequent pairs", ("pair", "samples"), rows)


def _values(found: LabelSet, parts: Parts) -> Section:
    values = found.targets()
    name = found.classes[0]
    all_known = np.flatnonzero(found.known)
    series, rows = [], []
    for part, samples in {"all": all_known, **parts}.items():
        chosen = values[samples][found.known[samples]].astype(np.float64)
        if not len(chosen):
            continue
        if part != "all" or not parts:
            series.append((part, chosen))
        quantiles = [number(float(q)) for q in np.quantile(chosen, _QUANTILES)]
        moments = (number(float(chosen.mean())), number(float(chosen.std())))
        rows.append((part, f"{len(chosen):,}", *moments, *quantiles))
    plot = plots.histograms("values", name, series or [("all", values[all_known])])
    head = ("part", "samples", "mean", "deviation", "minimum", "5%", "median", "95%", "maximum")
    return Section(
        "genres",
        "Values",
        f"{amount(len(all_known), 'sample')} with a value each, {name}. {_unlabelled(found)}",
        [Figure(plot, "Distribution of the values.")],
        Table("Values", head, rows),
    )
