"""The labels and the split of a collection, as ``labels`` would write them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.labels.label_set import VALUE, LabelSet
from featurestore.labels.splitting import OUTSIDE, PARTS, Parts, part_counts
from manyviews.operations.check.findings import Group, counted
from manyviews.operations.collection_labels import labels_of, split_of
from producers.sources.scan import Scan

_KINDS = {"multi-label": "any number of classes a sample", "class": "one class a sample"}


def labels_group(scanned: Scan) -> Group:
    """Counts the samples of each class, and of each part of the split.

    Problems of labels and splits are warnings: a build does not need them.

    Args:
        scanned: a collection other than MM-IMDb, whose labels and split are read.

    Returns:
        The group. Its facts are ``kind`` (None without labels), ``classes`` (samples of each, in
        the order of the columns), ``unlabelled`` (ids), and ``split``: samples of each part, or
        None; and for each part the samples of each class in ``by_part``. Values have ``values``,
        their minimum, mean and maximum, instead of ``classes``.
    """
    group = Group("labels", {"kind": None, "split": None})
    found = _read(group, scanned)
    try:
        stated = split_of(scanned)
    except InputError as error:
        _warn(group, "split", error)
        stated = None
    if found is not None:
        _add_labels(group, scanned, found)
    if stated is None:
        group.ok("split", "none: `labels --split 0.8,0.1,0.1` draws one")
        return group
    counts = part_counts(stated.parts)
    group.facts["split"] = counts
    group.ok("split", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if found is not None and found.kind != VALUE:
        _add_parts(group, found, stated.parts)
    return group


def _read(group: Group, scanned: Scan) -> LabelSet | None:
    if scanned.labels is None:
        group.ok("labels", "none")
        return None
    try:
        return labels_of(scanned)
    except (ConfigError, InputError) as error:
        _warn(group, "labels", error)
        return None


def _warn(group: Group, label: str, error: Exception) -> None:
    what, _, advice = str(error).partition("\n")
    group.warn(label, what, advice)


def _add_labels(group: Group, scanned: Scan, found: LabelSet) -> None:
    known = found.known
    group.facts |= {"kind": found.kind, "unlabelled": _ids(scanned, ~known)}
    if found.kind == VALUE:
        values = found.rows[known, 0].astype(np.float64)
        numbers = {"min": values.min(), "mean": values.mean(), "max": values.max()}
        group.facts["values"] = {name: float(number) for name, number in numbers.items()}
        group.ok(
            "values",
            f"{len(values):,}, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}",
        )
    else:
        counts = dict(zip(found.classes, found.counts().tolist(), strict=True))
        group.facts["classes"] = counts
        group.ok("classes", f"{len(counts):,}, {_KINDS[found.kind]}")
        group.ok("most frequent", counted(counts))
        once = [name for name, count in counts.items() if count == 1]
        if once:
            group.names(
                "warning", "of one sample", once, "They can be in one part of a split only."
            )
    if not known.all():
        advice = "They are built; `probe` and losses leave them out."
        group.names("warning", "without a label", group.facts["unlabelled"], advice)


def _add_parts(group: Group, found: LabelSet, parts: Parts) -> None:
    """The samples of each class in each part, and the classes that training never sees."""
    hot = np.nan_to_num(found.rows) > 0.5
    by_part = {name: hot[parts == number].sum(0) for number, name in enumerate(PARTS)}
    group.facts["by_part"] = {
        name: dict(zip(found.classes, counts.tolist(), strict=True))
        for name, counts in by_part.items()
    }
    inside = hot[parts != OUTSIDE].sum(0)
    unseen = [
        name
        for name, train, total in zip(found.classes, by_part["train"], inside, strict=True)
        if not train and total
    ]
    if unseen:
        advice = "A classifier cannot learn them: draw another split with `labels --split`."
        group.names("warning", "not in train", unseen, advice)


def _ids(scanned: Scan, chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [scanned.samples[int(i)].stem for i in np.flatnonzero(chosen)]
