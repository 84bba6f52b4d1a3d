"""The principal plane of the clean views, and the colours of its points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.imdb.genres import CLASS_NAMES
from featurestore.labels.label_set import MULTI_LABEL, VALUE, LabelSet

COLOURED = 7
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Plane:
    """The first two principal components.

    Attributes:
        points: float64 [S, 2], the coordinates of the samples.
        shares: share of the variance along each component.
    """

    points: npt.NDArray[np.float64]
    shares: tuple[float, float]


def plane(rows: npt.NDArray[np.float32]) -> Plane | None:
    """The principal plane of float32 [S, D]; None for fewer than three rows or no variance.

    The sign of an axis is arbitrary: its largest loading is made positive.
    """
    if len(rows) < 3 or rows.shape[1] < 2:
        return None
    wide = rows - rows.mean(axis=0, dtype=np.float64)
    total = float(np.einsum("sd,sd->", wide, wide))
    if total <= 0:
        return None
    if wide.shape[0] < wide.shape[1]:  # both products have the same eigenvalues: use the smaller
        values, vectors = np.linalg.eigh(wide @ wide.T)
        axes = (wide.T @ vectors[:, -2:]) / np.sqrt(np.maximum(values[-2:], 1e-300))
    else:
        values, axes = np.linalg.eigh(wide.T @ wide)
    axes, values = axes[:, -1:-3:-1], np.maximum(values[-1:-3:-1], 0.0)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return Plane(wide @ axes, (float(values[0]) / total, float(values[1]) / total))


def groups(
    rows: npt.NDArray[np.float32], classes: Sequence[str] = CLASS_NAMES
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Groups samples with labels float32 [S, C] by the rarest of their frequent classes.

    Returns:
        The names of the groups, which are the ``COLOURED`` most frequent classes in descending
        order and ``OTHER``; and the group of each sample, int64 [S].
    """
    labels = np.nan_to_num(rows)
    counts = labels.sum(axis=0)
    ranked = [int(c) for c in np.argsort(-counts, kind="stable")[:COLOURED] if counts[c] > 0]
    group_of = np.full(len(labels), len(ranked), np.int64)
    for group, column in enumerate(ranked):  # later classes are rarer, and override
        group_of[labels[:, column] > 0] = group
    return [*(classes[c] for c in ranked), OTHER], group_of


def value_groups(values: npt.NDArray[np.float32]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Groups samples with values float32 [S] into quarters of equal size, and ``OTHER`` for NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return [OTHER], np.zeros(len(values), np.int64)
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, 5)))
    group_of = np.searchsorted(edges[1:-1], values, side="right")
    group_of[~known] = max(1, len(edges) - 1)
    ends = itertools.pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]
    return [*(f"{low:.4g} to {high:.4g}" for low, high in ends), OTHER], group_of


def groups_of(
    found: LabelSet, samples: npt.NDArray[np.int64]
) -> tuple[list[str], npt.NDArray[np.int64], str]:
    """The groups of some samples by their labels, and a sentence that explains their colours."""
    if found.kind == VALUE:
        return (
            *value_groups(found.rows[samples, 0]),
            "Quarters of the values have colours.",
        )
    names, group = groups(found.rows[samples], found.classes)
    nouns = "genres" if found.classes == CLASS_NAMES else "classes"
    text = f"The {len(names) - 1} most frequent {nouns} have colours"
    if found.kind == MULTI_LABEL:
        text += "; a sample with several of them has the colour of the rarest"
    return names, group, f"{text}."
