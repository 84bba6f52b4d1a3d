"""Scores of predicted classes and values; those of several labels a sample are in ``scores``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score, r2_score, top_k_accuracy_score

from manyviews.operations.probe.scores import Floats

TOP = 5


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one predicted class each; every number is in [0, 1].

    Attributes:
        accuracy: share of samples whose most probable class is theirs.
        top5: share of samples whose class is among the five most probable ones; None with at most
            five classes.
        macro_f1: mean F1 of the classes that occur in the test set.
    """

    accuracy: float
    top5: float | None
    macro_f1: float


@dataclass(frozen=True, slots=True)
class ValueScores:
    """Scores of predicted values.

    Attributes:
        r2: share of the variance that is predicted, at most 1; None with fewer than two samples.
        spearman: rank correlation, in [-1, 1]; None if predictions or values are all equal.
    """

    r2: float | None
    spearman: float | None


def score_classes(probability: Floats, truth: npt.NDArray[np.int64]) -> ClassScores:
    """Scores predictions of one class each.

    Args:
        probability: float64 ``[m, C]``.
        truth: int64 ``[m]``, numbers of classes.
    """
    classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    occurs = np.unique(truth)
    top = None
    if classes > TOP:
        top = float(top_k_accuracy_score(truth, probability, k=TOP, labels=np.arange(classes)))
    return ClassScores(
        accuracy=float(accuracy_score(truth, predicted)),
        top5=top,
        macro_f1=float(f1_score(truth, predicted, labels=occurs, average="macro", zero_division=0)),
    )


def score_values(predicted: Floats, truth: Floats) -> ValueScores:
    """Scores predictions of values.

    Args:
        predicted: float64 ``[m]``.
        truth: float64 ``[m]``.
    """
    constant = len(truth) < 2 or np.ptp(predicted) == 0 or np.ptp(truth) == 0
    correlation = None if constant else np.corrcoef(_ranks(truth), _ranks(predicted))[0, 1]
    return ValueScores(
        r2=float(r2_score(truth, predicted)) if len(truth) > 1 else None,
        spearman=None if correlation is None else float(correlation),
    )


def _ranks(values: Floats) -> Floats:
    """The rank of each value, float64 ``[m]``; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def constant_classes(
    train: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], classes: int
) -> ClassScores:
    """The scores of predicting for every sample how frequent each class is in training.

    Args:
        train: int64 ``[n]``, the classes of the training samples.
        truth: int64 ``[m]``, those of the test samples.
        classes: the number of classes.
    """
    frequency = np.bincount(train, minlength=classes) / len(train)
    return score_classes(np.tile(frequency, (len(truth), 1)), truth)


def constant_values(train: Floats, truth: Floats) -> ValueScores:
    """The scores of predicting the mean of the training values for every sample."""
    return score_values(np.full(len(truth), train.mean()), truth)
