"""The principal plane of the clean views, and the colours of its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.imdb.genres import CLASS_NAMES

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


def groups(labels: npt.NDArray[np.float32]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Groups samples with labels float32 [S, 23] by the rarest of their frequent genres.

    Returns:
        The names of the groups, which are the ``COLOURED`` most frequent genres in descending order
        and ``OTHER``; and the group of each sample, int64 [S].
    """
    counts = labels.sum(axis=0)
    ranked = [int(c) for c in np.argsort(-counts, kind="stable")[:COLOURED] if counts[c] > 0]
    group_of = np.full(len(labels), len(ranked), np.int64)
    for group, column in enumerate(ranked):  # later genres are rarer, and override
        group_of[labels[:, column] > 0] = group
    return [*(CLASS_NAMES[c] for c in ranked), OTHER], group_of


def explain(names: Sequence[str]) -> str:
    """A sentence that explains the colours of :func:`groups`."""
    return (
        f"The {len(names) - 1} most frequent genres have colours; "
        "a sample with several of them has the colour of the rarest."
    )
