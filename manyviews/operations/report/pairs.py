"""Similarity of image and text of the same sample, compared with different samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manyviews.operations.report.features import FeatureFacts

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Similarities of an image feature and a text feature, of the samples that have both inputs.

    Attributes:
        image: the image feature's name.
        text: the text feature's name.
        matched: float32 [S], cosine of the two clean rows of each sample.
        mismatched: float32 [S * shifts], cosine of a sample's image with another sample's text.
        separation: probability that the cosine of an image with its text exceeds that with another
            text; 0.5 is chance.
        recall: share of images whose text is among the k nearest of all S texts, by k.
    """

    image: str
    text: str
    matched: Floats
    mismatched: Floats
    separation: float
    recall: dict[int, float]


def pairs(features: Sequence[FeatureFacts]) -> Iterator[PairFacts]:
    """Compares every image feature with every text feature of the same length."""
    for image in features:
        for text in features:
            if (image.modality, text.modality) != ("image", "text"):
                continue
            both = np.intersect1d(image.samples, text.samples)
            if image.clean.shape[1] == text.clean.shape[1] and len(both) > 1:
                yield _compare(image, text, both)


def _compare(image: FeatureFacts, text: FeatureFacts, samples: npt.NDArray[np.int64]) -> PairFacts:
    """Compares the rows of the ``samples`` that have an image and a text."""
    rows_of = [each.clean[np.searchsorted(each.samples, samples)] for each in (image, text)]
    cosines = _normalised(rows_of[0]) @ _normalised(rows_of[1]).T  # [S, S]
    count = len(cosines)
    matched = cosines.diagonal().copy()
    above = (cosines > matched[:, None]).sum(axis=1)
    equal = (cosines == matched[:, None]).sum(axis=1) - 1
    lower = count - 1 - above - equal
    shifts = range(1, min(8, count - 1) + 1)
    rows = np.arange(count)
    other = np.concatenate([cosines[rows, (rows + shift) % count] for shift in shifts])
    return PairFacts(
        image=image.name,
        text=text.name,
        matched=matched,
        mismatched=other,
        separation=float((lower + 0.5 * equal).sum() / (count * (count - 1))),
        # Half of the texts at equal distance count as nearer.
        recall={k: float((above + 0.5 * equal < k).mean()) for k in (1, 10) if k < count},
    )


def _normalised(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    normalised: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return normalised
