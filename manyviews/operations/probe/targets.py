"""The targets of a probe, and their scores, by the kind of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.labels.label_set import MULTI_LABEL, VALUE, Kind, LabelSet
from manyviews.operations.probe.kinds import (
    ClassScores,
    ValueScores,
    constant_classes,
    constant_values,
    score_classes,
    score_values,
)
from manyviews.operations.probe.scores import Floats, Scores, best_threshold, chance, score

AnyScores = Scores | ClassScores | ValueScores
Predictions = Floats


@dataclass(frozen=True, slots=True)
class Targets:
    """The labels of one part of a split.

    Attributes:
        y: float32 ``[n, C]``: multi-hot, one-hot, or values with the mean 0 and the deviation 1 of
            the training ones.
    """

    y: npt.NDArray[np.float32]

    @property
    def hot(self) -> npt.NDArray[np.bool_]:
        """Whether a sample has a class, bool ``[n, C]``."""
        return self.y > 0.5

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Index of the class of each sample, int64 ``[n]``; for labels of one class a sample."""
        numbers: npt.NDArray[np.int64] = self.y.argmax(axis=1)
        return numbers

    @property
    def values(self) -> Floats:
        """The values, float64 ``[n]``. Scaling changes neither R2 nor a rank correlation."""
        return self.y[:, 0].astype(np.float64)


def targets_of(
    labels: LabelSet, samples: Mapping[str, npt.NDArray[np.int64]]
) -> dict[str, Targets]:
    """The targets of each part of a split; every sample has a label."""
    rows = {part: labels.rows[chosen] for part, chosen in samples.items()}
    if labels.kind == VALUE:
        train = rows["train"].astype(np.float64)
        center, scale = train.mean(), train.std() or 1.0
        rows = {part: ((y - center) / scale).astype(np.float32) for part, y in rows.items()}
    return {part: Targets(y) for part, y in rows.items()}


def score_of(
    kind: Kind,
    predictions: Mapping[str, Predictions],
    truth: Mapping[str, Targets],
    threshold: float | None,
) -> tuple[float | None, AnyScores]:
    """Scores the predictions of the test set.

    Args:
        kind: the kind of the labels.
        predictions: of ``dev`` and ``test``, float64 ``[n, C]``.
        truth: the targets of both.
        threshold: probability above which one of several classes is predicted; None chooses it on
            dev.

    Returns:
        The threshold, which is None unless a sample may have several classes; and the scores.
    """
    test = predictions["test"]
    if kind == VALUE:
        return None, score_values(test[:, 0], truth["test"].values)
    if kind == MULTI_LABEL:
        used = threshold or best_threshold(predictions["dev"], truth["dev"].hot)
        return used, score(test, truth["test"].hot, used)
    return None, score_classes(test, truth["test"].numbers)


def chance_of(kind: Kind, truth: Mapping[str, Targets]) -> AnyScores:
    """The scores without features, from the targets of ``train`` and ``test``."""
    train, test = truth["train"], truth["test"]
    if kind == VALUE:
        return constant_values(train.values, test.values)
    if kind == MULTI_LABEL:
        return chance(train.hot.mean(0), test.hot)
    return constant_classes(train.numbers, test.numbers, train.y.shape[1])
