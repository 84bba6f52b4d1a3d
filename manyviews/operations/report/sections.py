"""The sections about features, with plots and tables of their statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.storage.fingerprint import VERSION
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from manyviews.operations.nearness import advice
from manyviews.operations.report import plots, projection
from manyviews.operations.report.content import Figure, Part, Section, Table, number
from manyviews.operations.report.features import FeatureFacts
from manyviews.operations.report.pairs import PairFacts

_SHOWN = 12
_FIELDS = ("seed", "image_recipe", "text_recipe", "device_kind", "view_parts")
# Means of cosines of raw rows.
_NEAR_HEAD = (
    *("feature", "views: own clean view", "views: other samples"),
    *("clean views: other samples", "kept"),
)
_QUANTILES = (0.05, 0.5, 0.95)
Groups = tuple[list[str], npt.NDArray[np.int64], str]


def summary(store: FeatureStore) -> Section:
    """The summary of the store and its features."""
    changed = sorted({f"{k} {v}" for e in store.ledger.entries for k, v in e.changed.items()})
    notes = [f"Built with changes that were accepted: {'; '.join(changed)}."] if changed else []
    facts = Table("The store", ("", ""), _store_rows(store))
    return Section("summary", "Summary", facts, _feature_table(store), *notes)


def _store_rows(store: FeatureStore) -> list[tuple[object, object]]:
    spec, known, done = store.spec, store.fingerprint, len(store.records)
    total = sum(size for e in store.ledger.entries for size, _ in e.files.values())
    rows: list[tuple[object, object]] = [
        ("state", "complete" if store.complete else "not complete; build --resume continues"),
        ("samples", f"{done:,} of {spec.samples:,}"),
        ("views per sample, including the clean one", spec.views),
        ("rows of each feature", f"{done * spec.views:,}"),
        ("chunks", f"{len(store.ledger):,} of {spec.chunks:,}, of {amount(spec.chunk, 'sample')}"),
        ("size on disk", size_text(total)),
        ("bad inputs", f"{len(store.bad_inputs):,}"),
    ]
    rows += [
        (f"samples without {modality}", f"{count:,}; their rows are zeros, and in no figure")
        for modality, count in store.absent.items()
    ]
    rows += [(name.replace("_", " "), known[name]) for name in _FIELDS if name in known]
    versions = sorted(name for name in known if name.startswith(VERSION))
    listed = ", ".join(f"{name.removeprefix(VERSION)} {known[name]}" for name in versions)
    return [*rows, ("versions", listed or "–")]


def _feature_table(store: FeatureStore) -> Table:
    head = ("feature", "dimensions", "model", "dtype", "batch", "on disk")
    rows = []
    for name, dim in store.spec.dims.items():
        array = store.spec.feature(name)
        size = sum(e.files[array.file(e.chunk)][0] for e in store.ledger.entries)
        model, dtype, batch = (
            str(store.fingerprint.get(f"{name}.{field}", "–"))
            for field in ("model", "dtype", "batch_size")
        )
        rows.append((name, dim, model, dtype.removeprefix("torch."), batch, size_text(size)))
    return Table("The features", head, rows)


def norms(features: Sequence[FeatureFacts]) -> Section:
    """The distribution of the lengths of rows."""
    drawn, rows, unit = [], [], []
    for facts in features:
        series = [("clean", facts.clean_norms), ("augmented", facts.view_norms)]
        if facts.is_normalised:
            unit.append(facts.name)
            continue
        plot = plots.histograms(f"norms of {facts.name}", "Euclidean norm", series)
        drawn.append(Figure(plot, facts.name))
        for label, values in series:
            if len(values):
                quantiles = [number(float(q)) for q in np.quantile(values, _QUANTILES)]
                rows.append((facts.name, label, number(float(values.mean())), *quantiles))
    parts: list[Part | list[Figure]] = []
    if unit:
        parts.append(
            f"Normalised: {', '.join(unit)}. Every row has length 1, as the model returns it; "
            "there is no distribution of lengths to show."
        )
    if rows:
        explanation = (
            "Lengths of raw rows. One peak is normal; a spike at one value means identical rows, "
            "such as empty texts or a model that ignores its input."
        )
        head = ("feature", "views", "mean", "5%", "median", "95%")
        parts += [explanation, drawn, Table("Norms", head, rows)]
    return Section("norms", "Norms", *parts)


def dimensions(features: Sequence[FeatureFacts]) -> Section:
    """The mean and standard deviation of each dimension over all rows."""
    drawn, rows = [], []
    for facts in features:
        sigma, mean = facts.moments.sigma, facts.moments.mean
        plot = plots.dimensions(f"dimensions of {facts.name}", sigma, mean)
        drawn.append(Figure(plot, facts.name))
        levels = [number(float(f(sigma))) for f in (np.min, np.median, np.max)]
        constant, far = _listed(facts.near_constant), _listed(facts.far_from_zero)
        rows.append((facts.name, *levels, constant, far))
    head = ("feature", "σ minimum", "σ median", "σ maximum", "near-constant", "|mean| > 10 σ")
    return Section(
        "dimensions",
        "Dimensions",
        "Mean and standard deviation σ over all rows, before any z-score. A dimension is "
        "called near-constant where σ is below a ten-thousandth of the feature's median σ or "
        "below a millionth of its mean: a z-score only amplifies its noise. Dimensions far "
        "from zero dominate the products of raw rows.",
        drawn,
        Table("Dimensions, numbered from 0", head, rows),
    )


def _listed(indices: npt.NDArray[np.int64]) -> str:
    if not len(indices):
        return "none"
    more = ", …" if len(indices) > _SHOWN else ""
    return f"{len(indices):,}: {', '.join(map(str, indices[:_SHOWN]))}{more}"


def planes(
    features: Sequence[FeatureFacts], groups: Groups | None, samples: npt.NDArray[np.int64]
) -> Section:
    """The principal plane of each feature's clean views; ``groups`` are those of ``samples``."""
    drawn: list[Figure] = []
    rows: list[tuple[object, ...]] = []
    for facts in features:
        plane = projection.plane(facts.clean)
        if plane is None:
            rows.append((facts.name, "–", "–"))
            continue
        names, group, _ = groups or (["samples"], np.zeros(len(samples), np.int64), "")
        group = group[np.searchsorted(samples, facts.samples)]
        plot = plots.scatter(f"principal plane of {facts.name}", plane.points, names, group)
        drawn.append(Figure(plot, facts.name))
        rows.append((facts.name, *(f"{share:.1%}" for share in plane.shares)))
    colours = groups[2] if groups else "Give --labels-dir to colour by label."
    return Section(
        "plane",
        "Principal plane",
        f"Clean views in the plane of their largest variance. {colours} A linear model can "
        "distinguish groups that are apart; inspect points that are far from all others.",
        drawn,
        Table("Share of the variance", ("feature", "first", "second"), rows),
    )


def spread(features: Sequence[FeatureFacts]) -> Section:
    """The similarity of a sample's views, compared with other samples."""
    drawn, rows = [], []
    for facts in features:
        series = [("its augmented views", facts.to_clean), ("another sample", facts.to_other)]
        if any(len(values) for _, values in series):
            plot = plots.histograms(f"cosines with the clean view, {facts.name}", "cosine", series)
            drawn.append(Figure(plot, facts.name))
        numbers = (facts.variance_ratio, facts.intraclass, *map(_median, (v for _, v in series)))
        rows.append((facts.name, *(number(value, 3) for value in numbers)))
    head = ("feature", "within / between", "ICC(1)", "median: own views", "median: others")
    return Section(
        "spread",
        "Views of a sample, and other samples",
        "Cosines with a sample's clean view, after subtracting the mean of all rows. A sample's "
        "own views should be to the right of other samples. A spike at 1 means that the views "
        "are unchanged; values around 0 mean that they no longer resemble the sample. Within / "
        "between is the variance within samples over the variance between samples; ICC(1) is the "
        "share of the variance that the sample explains. The last table has means of cosines of "
        "raw rows: a recipe that suits the model keeps most of the difference between samples.",
        drawn,
        Table("Spread", head, rows),
        Table("The recipe and the model", _NEAR_HEAD, list(map(_near_row, features))),
        *(
            f"{facts.name}: {facts.nearness.text()}. {advice(facts.modality, facts.recipe)}"
            for facts in features
            if facts.nearness is not None and facts.nearness.is_lost
        ),
    )


def _near_row(facts: FeatureFacts) -> tuple[object, ...]:
    near = facts.nearness
    if near is None:
        return (facts.name, "–", "–", "–", "–")
    return (
        facts.name,
        *(number(v, 2) for v in (near.own, near.others, near.clean)),
        f"{near.kept:.0%}",
    )


def _median(values: npt.NDArray[np.float32]) -> float | None:
    return float(np.median(values)) if len(values) else None


def matching(pairs: Sequence[PairFacts]) -> Section:
    """The similarity of image and text of the same sample."""
    drawn, rows = [], []
    for facts in pairs:
        series = [("same sample", facts.matched), ("different samples", facts.mismatched)]
        name = f"{facts.image} with {facts.text}"
        drawn.append(Figure(plots.histograms(f"cosines of {name}", "cosine", series), name))
        medians = [number(_median(values), 3) for _, values in series]
        recall = [f"{facts.recall[k]:.1%}" if k in facts.recall else "–" for k in (1, 10)]
        rows.append((name, *medians, number(facts.separation, 3), *recall))
    if not rows:
        reason = "No image feature has the dimension of a text feature: nothing to compare."
        return Section("matching", "Image and text", reason)
    head = ("pair", "median: same", "median: different", "separation", "recall@1", "recall@10")
    return Section(
        "matching",
        "Image and text",
        "Cosines of raw clean rows of features of equal dimension. They are meaningful only if "
        "both models share a space, as the two of CLIP do; then the same sample is to the right. "
        "Separation is the probability that an image is nearer to its own text than to another "
        f"one (0.5 is chance); recall@k is out of {len(pairs[0].matched):,} texts.",
        drawn,
        Table("Image and text", head, rows),
    )


def size_text(size: float) -> str:
    """A size in decimal units, as text."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
