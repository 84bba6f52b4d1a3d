"""Scores of multi-label predictions: F1 in four averages, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from featurestore.errors import InputError

Booleans = NDArray[np.bool_]
Floats = NDArray[np.float64]

_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
# Draws for the chance level: enough for two stable digits, few enough to be quick.
_MOST_DRAWS, _LEAST_DRAWS, _DRAWN_SAMPLES = 500, 20, 200_000


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of predictions for a test set; every number is in [0, 1].

    For a class that no test sample has, F1 and average precision are not defined: the means over
    classes leave it out. False positives for it count in the micro and samples averages.

    Attributes:
        micro_f1: F1 of all (sample, class) decisions pooled.
        macro_f1: mean F1 of the classes.
        weighted_f1: mean F1 of the classes, weighted by their number of samples.
        samples_f1: mean F1 of the samples; 0 for a sample without labels and predictions.
        mean_ap: mean average precision of the classes; it does not depend on a threshold.
    """

    micro_f1: float
    macro_f1: float
    weighted_f1: float
    samples_f1: float
    mean_ap: float


def score(probability: Floats, truth: Booleans, threshold: float) -> Scores:
    """Scores predictions; a class is predicted where its probability is above ``threshold``.

    Args:
        probability: float64 ``[m, C]``.
        truth: bool ``[m, C]``.
        threshold: in [0, 1].

    Raises:
        InputError: no sample has a label.
    """
    if not truth.any():
        raise InputError("No test sample has a label: there is nothing to score.")
    predicted, occurs = probability > threshold, np.flatnonzero(truth.any(0))

    def f1(average: str, labels: NDArray[np.int64] | None = None) -> float:
        return float(f1_score(truth, predicted, labels=labels, average=average, zero_division=0))

    return Scores(
        micro_f1=f1("micro"),
        macro_f1=f1("macro", occurs),
        weighted_f1=f1("weighted", occurs),
        samples_f1=f1("samples"),
        mean_ap=float(average_precision_score(truth[:, occurs], probability[:, occurs])),
    )


def best_threshold(probability: Floats, truth: Booleans) -> float:
    """The multiple of 0.05 with the highest micro F1.

    Args:
        probability: float64 ``[m, C]``.
        truth: bool ``[m, C]``.
    """
    scores = _micro_f1(np.stack([probability > threshold for threshold in _THRESHOLDS]), truth)
    # Separable data give a wide range of equal scores: its middle is the most robust choice.
    best = np.flatnonzero(scores == scores.max())
    return _THRESHOLDS[int(best[len(best) // 2])]


def _micro_f1(predicted: Booleans, truth: Booleans) -> Floats:
    """Micro F1 of each of k predictions, bool ``[k, m, C]``, in one call with k columns."""
    columns = predicted.reshape(len(predicted), -1).T
    repeated = np.broadcast_to(truth.reshape(-1, 1), columns.shape)
    return np.asarray(f1_score(repeated, columns, average=None, zero_division=0))


def chance(frequency: Floats, truth: Booleans, seed: int = 0) -> Scores:
    """The expected scores of predicting each class at random, at its frequency in training.

    F1 is the mean over random draws, which are scored in one call because scikit-learn's overhead
    per call exceeds the computation. Average precision is that of a random order, in closed form.

    Args:
        frequency: float64 ``[C]``, frequency of each class in training.
        truth: bool ``[m, C]``, labels of the test set, with at least one positive.
        seed: seed of the draws.
    """
    samples, classes = truth.shape
    draws = min(_MOST_DRAWS, max(_LEAST_DRAWS, _DRAWN_SAMPLES // samples))
    predicted = np.random.default_rng(seed).random((draws, *truth.shape)) < frequency
    truths = np.broadcast_to(truth, predicted.shape)
    pairs = [drawn.swapaxes(0, 1).reshape(samples, -1) for drawn in (truths, predicted)]
    each = f1_score(*pairs, average=None, zero_division=0).reshape(draws, classes).mean(0)
    pairs = [drawn.reshape(-1, classes) for drawn in (truths, predicted)]
    support = truth.sum(0)
    occurs = support > 0
    return Scores(
        micro_f1=float(_micro_f1(predicted, truth).mean()),
        macro_f1=float(each[occurs].mean()),
        weighted_f1=float(np.average(each[occurs], weights=support[occurs])),
        samples_f1=float(f1_score(*pairs, average="samples", zero_division=0)),
        mean_ap=float(_random_precision(samples, support[occurs]).mean()),
    )


def _random_precision(samples: int, positives: NDArray[np.int64]) -> Floats:
    """Expected average precision of a random order, float64 ``[C]``.

    A positive at rank k has on average (k - 1) (P - 1) / (n - 1) other positives before it; the
    precision at k is that number plus one, divided by k. Every rank is equally likely.
    """
    ranks = np.arange(1, samples + 1)[:, None]
    before = (ranks - 1) * (positives - 1) / max(1, samples - 1)
    return np.asarray(((before + 1) / ranks).mean(0))
