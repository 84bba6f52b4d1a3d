"""The plane in which clean views differ most, and the colours of its points."""

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
        points: float64 [S, 2].
        shares: of the variance, along each of the two.
    """

    points: npt.NDArray[np.float64]
    shares: tuple[float, float]


def plane(rows: npt.NDArray[np.float32]) -> Plane | None:
    """The principal plane of float32 [S, D]; None for fewer than three rows or no variance.

    Of an axis only the line is defined, so its largest loading is made positive.
    """
    if len(rows) < 3 or rows.shape[1] < 2:
        return None
    wide = rows - rows.mean(axis=0, dtype=np.float64)
    total = float(np.einsum("sd,sd->", wide, wide))
    if total <= 0:
        return None
    if wide.shape[0] < wide.shape[1]:  # the smaller of the two products has the same eigenvalues
        values, vectors = np.linalg.eigh(wide @ wide.T)
        axes = (wide.T @ vectors[:, -2:]) / np.sqrt(np.maximum(values[-2:], 1e-300))
    else:
        values, axes = np.linalg.eigh(wide.T @ wide)
    axes, values = axes[:, -1:-3:-1], np.maximum(values[-1:-3:-1], 0.0)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return Plane(wide @ axes, (float(values[0]) / total, float(values[1]) / total))


def groups(labels: npt.NDArray[np.float32]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """A colour for each sample of float32 [S, 23]: the rarest of its frequent genres.

    Returns:
        The names of the groups, the most frequent first and the rest last, and int64 [S] which of
        them a sample is in. Only the most frequent genres are groups of their own.
    """
    counts = labels.sum(axis=0)
    ranked = [int(c) for c in np.argsort(-counts, kind="stable")[:COLOURED] if counts[c] > 0]
    found = np.full(len(labels), len(ranked), np.int64)
    for group, column in enumerate(ranked):  # a later one is rarer, and wins
        found[labels[:, column] > 0] = group
    return [*(CLASS_NAMES[c] for c in ranked), OTHER], found


def explain(names: Sequence[str]) -> str:
    """How :func:`groups` chose, for the page."""
    return (
        f"Coloured are the {len(names) - 1} most frequent genres; "
        "a sample with several of them has the colour of the rarest."
    )
