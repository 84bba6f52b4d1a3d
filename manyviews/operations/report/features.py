"""Statistics of one feature, computed chunk by chunk; only clean views are held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.records import Modality
from featurestore.storage.moments import Moments, merge
from featurestore.storage.store import FeatureStore
from manyviews.operations.nearness import Nearness, NearnessSums
from manyviews.operations.report.sampling import Sampled, modality

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# A dimension is near-constant if its deviation is below _CONSTANT times the feature's median
# deviation or below _ROUNDING times its mean: float32 training cannot use it.
_CONSTANT = 1e-4
_ROUNDING = 1e-6
# A mean this many deviations away from zero dominates every product of raw rows.
_FAR = 10.0
# Tolerance of the length of a normalised row: bfloat16 has eight bits of precision.
_UNIT = 2.0**-7


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """Statistics of one feature.

    Attributes:
        name: the feature's name.
        modality: image or text, or None if not known.
        recipe: name and version of the recipe that made its views; "" if not known.
        moments: moments of the committed rows of samples that have the feature's input.
        samples: int64 [S], the measured samples that have it, to which the following attributes
            refer.
        clean: float32 [S, D], the clean rows.
        clean_norms: float32 [S], Euclidean norms of the clean rows.
        view_norms: float32 [S * (V-1)], Euclidean norms of the augmented rows.
        to_clean: float32 [S * (V-1)], cosine of each augmented row with its sample's clean row,
            after subtracting the mean of all rows.
        to_other: float32 [S], cosine of each sample's clean row with the next sample's, after
            subtracting the mean of all rows.
        within: float64 [D], mean square of rows around their sample's mean, with S * (V-1) degrees
            of freedom; None for one view.
        between: float64 [D], V times the mean square of samples' means, with S - 1 degrees of
            freedom; None for fewer than two samples or views.
        nearness: how near views stay to the clean view; None for fewer than two samples or views.
    """

    name: str
    modality: Modality | None
    recipe: str
    moments: Moments
    samples: npt.NDArray[np.int64]
    clean: Floats
    clean_norms: Floats
    view_norms: Floats
    to_clean: Floats
    to_other: Floats
    within: Doubles | None
    between: Doubles | None
    nearness: Nearness | None

    @property
    def is_normalised(self) -> bool:
        """Whether every row has length 1, up to rounding to bfloat16."""
        norms = np.concatenate([self.clean_norms, self.view_norms])
        return bool((np.abs(norms - 1) <= _UNIT).all())

    @property
    def near_constant(self) -> npt.NDArray[np.int64]:
        """Indices of the near-constant dimensions, int64."""
        sigma, mean = self.moments.sigma, np.abs(self.moments.mean)
        return np.flatnonzero((sigma <= _CONSTANT * np.median(sigma)) | (sigma <= _ROUNDING * mean))

    @property
    def far_from_zero(self) -> npt.NDArray[np.int64]:
        """Indices of the dimensions whose mean is more than ten deviations from zero, int64."""
        return np.flatnonzero(np.abs(self.moments.mean) > _FAR * self.moments.sigma)

    @property
    def variance_ratio(self) -> float | None:
        """Variance within samples over variance between samples, each summed over dimensions.

        The variance between samples excludes the noise of the samples' means: in a one-way analysis
        of variance it is the mean square between samples minus that within them, over the number of
        views. None if it is not positive.
        """
        if self.within is None or self.between is None:
            return None
        spread = float((self.between - self.within).sum()) / self._views
        return float(self.within.sum()) / spread if spread > 0 else None

    @property
    def intraclass(self) -> float | None:
        """ICC(1) of Shrout and Fleiss (1979), from mean squares summed over the dimensions."""
        if self.within is None or self.between is None:
            return None
        within, between = float(self.within.sum()), float(self.between.sum())
        total = between + (self._views - 1) * within
        return (between - within) / total if total > 0 else None

    @property
    def _views(self) -> int:
        return 1 + len(self.to_clean) // max(1, len(self.samples))


def measure(store: FeatureStore, feature: str, sampled: Sampled) -> FeatureFacts:
    """Measures one feature, whose input one of the sampled samples has.

    Raises:
        CorruptStoreError: a chunk is missing or damaged.
    """
    moments = merge(store.chunk_moments(feature, entry.chunk) for entry in store.ledger.entries)
    mean = moments.mean.astype(np.float32)
    sampled = sampled.having(store, feature)
    near = NearnessSums()
    sums = _Sums(store.spec.dims[feature], store.spec.views, moments.mean)
    parts: list[tuple[Floats, Floats, Floats]] = []
    for chunk in sampled.chunks:
        block = store.read_chunk(feature, chunk)[sampled.of(store, chunk)]  # [n, V, D]
        sums.add(block)
        near.add(block)
        norms = np.linalg.norm(block, axis=2)
        centred = block - mean
        cosines = cosine(centred[:, 1:], centred[:, :1])
        parts.append((block[:, 0].copy(), norms, cosines))
    clean, norms, cosines = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    centred = clean - mean
    return FeatureFacts(
        name=feature,
        modality=modality(store, feature),
        recipe=str(store.fingerprint.get(f"{modality(store, feature)}_recipe", "")),
        moments=moments,
        samples=sampled.samples,
        clean=clean,
        clean_norms=norms[:, 0],
        view_norms=norms[:, 1:].reshape(-1),
        to_clean=cosines.reshape(-1),
        to_other=cosine(centred, np.roll(centred, -1, axis=0)) if len(clean) > 1 else clean[:0, 0],
        within=sums.within,
        between=sums.between,
        nearness=near.nearness(),
    )


def cosine(a: Floats, b: Floats) -> Floats:
    """Cosines of rows, float32 [...]; 0 if one of the two rows is zero."""
    products = np.einsum("...d,...d->...", a, b)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: Floats = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines


class _Sums:
    """The two sums of squares of a one-way analysis of variance with samples as groups."""

    def __init__(self, dim: int, views: int, origin: Doubles) -> None:
        self._views = views
        self._origin = origin
        self._samples = 0
        self._within = np.zeros(dim)
        self._means: list[Doubles] = []

    def add(self, block: Floats) -> None:
        """Adds float32 [n, V, D]."""
        wide = block - self._origin  # float64, centred so that squares keep their precision
        means = wide.mean(axis=1)
        wide -= means[:, None]
        self._within += np.einsum("nvd,nvd->d", wide, wide)
        self._means.append(means)
        self._samples += len(block)

    @property
    def within(self) -> Doubles | None:
        degrees = self._samples * (self._views - 1)
        return self._within / degrees if degrees else None

    @property
    def between(self) -> Doubles | None:
        if self._samples < 2 or self._views < 2:
            return None
        between: Doubles = self._views * np.concatenate(self._means).var(axis=0, ddof=1)
        return between
