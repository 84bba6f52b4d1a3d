"""Mergeable mean and sum of squared deviations, in float64.

``E[x²] - mean²`` loses all precision if the spread is small compared with the mean, and gives a
nonzero deviation for constant dimensions. So each chunk is processed in two passes, and chunks are
merged by the pairwise update of Chan, Golub and LeVeque ("Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", 1979), always in order: the result is always bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The paper adds this to every deviation; the published datamodule's scale replaces zeros by it.
EPSILON = np.float32(1e-6)


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of ``count`` rows.

    Attributes:
        count: the number of rows.
        mean: the mean, float64 ``[D]``.
        m2: the sum of squared deviations from the mean, float64 ``[D]``.
    """

    count: int
    mean: npt.NDArray[np.float64]
    m2: npt.NDArray[np.float64]

    @property
    def sigma(self) -> npt.NDArray[np.float64]:
        """Population standard deviation (ddof 0), float64 ``[D]``; 0 for a constant dimension."""
        return np.sqrt(self.m2 / self.count)

    @property
    def sample_sigma(self) -> npt.NDArray[np.float64]:
        """Sample standard deviation (ddof 1, as ``torch.std``), float64 ``[D]``; needs 2 rows."""
        return np.sqrt(self.m2 / (self.count - 1))


@dataclass(frozen=True, slots=True)
class Scale:
    """The z-score of one feature: ``(x - mu) / (sigma + epsilon)``, in float32 throughout.

    Attributes:
        mu: the mean, float32 ``[D]``.
        sigma: the standard deviation without the epsilon, float32 ``[D]``.
        epsilon: the number added to ``sigma``: the paper's 1e-6, or 0 if no ``sigma`` is 0.
    """

    mu: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]
    epsilon: np.float32 = EPSILON

    def apply(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Standardizes and returns float32 ``[..., D]``, in place: (x - mu) / (sigma + epsilon)."""
        self.apply_to(rows, rows)
        return rows

    def apply_to(self, rows: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """Writes the standardized rows, float32 ``[..., D]``, to ``out``, which may be ``rows``."""
        np.subtract(rows, self.mu, out=out)
        out /= self.sigma + self.epsilon


def moments_of(rows: npt.NDArray[np.float32]) -> Moments:
    """Moments of ``float32 [n, D]``, computed in two passes; of no rows, zeros with count 0."""
    if not len(rows):
        return Moments(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
    wide = rows.astype(np.float64)
    mean = wide.mean(axis=0)
    wide -= mean
    # The sum is 0 in exact arithmetic; subtracting its square corrects the rounding of the mean.
    residue = wide.sum(axis=0)
    m2 = np.einsum("nd,nd->d", wide, wide) - residue * residue / len(rows)
    return Moments(len(rows), mean, np.maximum(m2, 0.0))


def merge(parts: Iterable[Moments]) -> Moments:
    """Merges moments in the order given; those of no rows change nothing.

    Raises:
        ValueError: there are no rows, so that mean and deviation are undefined.
    """
    total: Moments | None = None
    for part in parts:
        if part.count:
            total = part if total is None else _merge_two(total, part)
    if total is None:
        raise ValueError("moments of no rows are undefined")
    return total


def _merge_two(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    m2 = a.m2 + b.m2 + delta * delta * (a.count * b.count / count)
    return Moments(count, mean, m2)


def scale_of(moments: Moments) -> Scale:
    """The paper's z-score computed from these moments."""
    return Scale(moments.mean.astype(np.float32), moments.sigma.astype(np.float32))


def sample_scale_of(moments: Moments) -> Scale:
    """The published datamodule's z-score: sample deviations, zeros replaced by 1e-6, no epsilon."""
    sigma = moments.sample_sigma.astype(np.float32)
    sigma[sigma == 0] = EPSILON
    return Scale(moments.mean.astype(np.float32), sigma, np.float32(0))
