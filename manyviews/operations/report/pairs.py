"""Image and text of the same sample against those of different samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manyviews.operations.report.features import FeatureFacts

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PairFacts:
    """How well an image feature and a text feature find each other.

    Attributes:
        image: the image feature's name.
        text: the text feature's name.
        matched: float32 [S], cosine of both clean rows of a sample.
        mismatched: float32 [S * shifts], cosine of a sample's image and another one's text.
        separation: probability that a matched cosine exceeds one of the same image with another
            text; 0.5 is chance.
        recall: by k, share of images whose own text is among the k nearest of all S texts.
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
            if image.clean.shape == text.clean.shape and len(image.clean) > 1:
                yield _compare(image, text)


def _compare(image: FeatureFacts, text: FeatureFacts) -> PairFacts:
    cosines = _normalised(image.clean) @ _normalised(text.clean).T  # [S, S]
    count = len(cosines)
    own = cosines.diagonal().copy()
    above = (cosines > own[:, None]).sum(axis=1)
    equal = (cosines == own[:, None]).sum(axis=1) - 1
    lower = count - 1 - above - equal
    shifts = range(1, min(8, count - 1) + 1)
    rows = np.arange(count)
    other = np.concatenate([cosines[rows, (rows + shift) % count] for shift in shifts])
    return PairFacts(
        image=image.name,
        text=text.name,
        matched=own,
        mismatched=other,
        separation=float((lower + 0.5 * equal).sum() / (count * (count - 1))),
        # Of texts that are equally near, half are counted as nearer.
        recall={k: float((above + 0.5 * equal < k).mean()) for k in (1, 10) if k < count},
    )


def _normalised(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return found
