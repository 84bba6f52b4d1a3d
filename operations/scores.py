"""How well labels are predicted: F1 in four averages, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError

Booleans = NDArray[np.bool_]
Floats = NDArray[np.float64]

_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
# Draws behind the chance level: enough that its second digit stands, few enough to be quick.
_MOST_DRAWS, _LEAST_DRAWS, _DRAWN_SAMPLES = 500, 20, 200_000


@dataclass(frozen=True, slots=True)
class Scores:
    """How well the labels of a test set are predicted; every number is in [0, 1].

    A class that no test sample has has no F1 and no average precision worth the name: it stays out
    of the means over classes, while false alarms for it count in the micro and samples averages.

    Attributes:
        micro_f1: F1 of all (sample, class) decisions pooled.
        macro_f1: mean F1 of the classes.
        weighted_f1: mean F1 of the classes, weighted by how many samples have them.
        samples_f1: mean F1 of the samples; 0 for one without labels and predictions.
        mean_ap: mean average precision of the classes, which needs no threshold.
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
    return _score(probability > threshold, probability, truth)


def _score(predicted: Booleans, probability: Floats, truth: Booleans) -> Scores:
    hits, claims, support = (x.sum(0) for x in (predicted & truth, predicted, truth))
    occurs = support > 0
    per_class = _f1(hits, claims, support)[occurs]
    per_sample = _f1(*(x.sum(1) for x in (predicted & truth, predicted, truth)))
    return Scores(
        micro_f1=float(_f1(hits.sum(), claims.sum(), support.sum())),
        macro_f1=float(per_class.mean()),
        weighted_f1=float(np.average(per_class, weights=support[occurs])),
        samples_f1=float(per_sample.mean()),
        mean_ap=float(average_precision(probability, truth)[occurs].mean()),
    )


def _f1(hits: NDArray[np.int64], claims: NDArray[np.int64], support: NDArray[np.int64]) -> Floats:
    """2 TP / (2 TP + FP + FN); 0 where there is neither a claim nor a positive."""
    return np.asarray(2.0 * hits / np.maximum(claims + support, 1))


def average_precision(probability: Floats, truth: Booleans) -> Floats:
    """Average precision of each class: sum over distinct scores of precision times recall gained.

    Samples with the same score are taken together, so that their order does not matter. There is no
    interpolation: Buckley and Voorhees, "Evaluating Evaluation Measure Stability" (2000).

    Args:
        probability: float64 ``[m, C]``.
        truth: bool ``[m, C]``.

    Returns:
        float64 ``[C]``, NaN for a class without a positive.
    """
    return np.array([_average_precision(p, t) for p, t in zip(probability.T, truth.T, strict=True)])


def _average_precision(probability: Floats, truth: Booleans) -> float:
    positives = int(truth.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of those with the same score
    hits = np.cumsum(truth[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)


def best_threshold(probability: Floats, truth: Booleans) -> float:
    """The multiple of 0.05 with the highest micro F1.

    Args:
        probability: float64 ``[m, C]``.
        truth: bool ``[m, C]``.
    """
    support = truth.sum()
    scores = []
    for threshold in _THRESHOLDS:
        predicted = probability > threshold
        scores.append(float(_f1((predicted & truth).sum(), predicted.sum(), support)))
    best = [t for t, found in zip(_THRESHOLDS, scores, strict=True) if found == max(scores)]
    # Separable data leave a wide range of equals; its middle is furthest from harm.
    return best[len(best) // 2]


def chance(frequency: Floats, truth: Booleans, seed: int = 0) -> Scores:
    """The expected scores of naming each class as often as it occurs in training, at random.

    Args:
        frequency: float64 ``[C]``, of the classes in training.
        truth: bool ``[m, C]``, of the test set, with at least one positive.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    draws = min(_MOST_DRAWS, max(_LEAST_DRAWS, _DRAWN_SAMPLES // len(truth)))
    found = []
    for _ in range(draws):
        ranks = rng.random(truth.shape)
        # Below the frequency is named; the same draw, turned round, ranks the samples.
        found.append(_score(ranks < frequency, 1.0 - ranks, truth))
    means = {f.name: float(np.mean([getattr(s, f.name) for s in found])) for f in fields(Scores)}
    return Scores(**means)
