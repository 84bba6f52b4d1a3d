"""Scores compared with scikit-learn, and chance compared with theory."""

from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from featurestore.errors import InputError
from manyviews.operations.probe.scores import best_threshold, chance, score


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((60, 6)) < 0.3
    probability = np.round(rng.random((60, 6)), 1)  # many ties
    truth[:, 5] = False  # no test sample has it
    truth[:3] = False  # samples without any label
    probability[:2] = 0
    found = score(probability, truth, 0.55)
    predicted = probability > 0.55
    known = range(5)
    assert found.micro_f1 == pytest.approx(f1_score(truth, predicted, average="micro"))
    for average, value in (("macro", found.macro_f1), ("weighted", found.weighted_f1)):
        expected = f1_score(truth, predicted, average=average, labels=known, zero_division=0)
        assert value == pytest.approx(expected)
    expected = f1_score(truth, predicted, average="samples", zero_division=0)
    assert found.samples_f1 == pytest.approx(expected)
    expected = average_precision_score(truth[:, known], probability[:, known], average="macro")
    assert found.mean_ap == pytest.approx(expected)


def test_average_precision_by_hand_with_ties() -> None:
    """Samples with equal scores share a rank; a class without a positive is left out."""
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0]], bool)
    probability = np.array([[0.9, 0.1], [0.5, 0.2], [0.5, 0.3], [0.4, 0.4], [0.1, 0.5]])
    # Recall 1/3 at precision 1, a second third at 2/3 (of three), the last at 3/5.
    assert score(probability, truth, 0.5).mean_ap == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_the_order_of_samples_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth, probability = rng.random((50, 3)) < 0.5, rng.integers(0, 3, (50, 3)) / 3
    order = rng.permutation(50)
    found, shuffled = score(probability, truth, 0.3), score(probability[order], truth[order], 0.3)
    assert asdict(shuffled) == pytest.approx(asdict(found))


def test_the_best_threshold_is_the_middle_of_equal_ones() -> None:
    truth = np.array([[True, False], [False, True]])
    assert best_threshold(np.where(truth, 0.9, 0.2), truth) == pytest.approx(0.55)
    rng = np.random.default_rng(0)
    truth, probability = rng.random((300, 4)) < 0.2, rng.random((300, 4))
    chosen = best_threshold(probability, truth)
    micro = [f1_score(truth, probability > t, average="micro") for t in np.arange(1, 20) / 20]
    assert f1_score(truth, probability > chosen, average="micro") == max(micro)


def test_chance_is_the_expected_score() -> None:
    truth = np.zeros((4000, 3), bool)
    truth[:1000, 0] = True  # a quarter
    truth[:2000, 1] = True  # half
    found = chance(np.array([0.25, 0.5, 0.0]), truth)
    # With p drawn and p true: F1 -> 2 p p / (p + p) = p for a class; pooled: sum p^2 / sum p.
    assert found.macro_f1 == pytest.approx((0.25 + 0.5) / 2, abs=0.01)
    assert found.micro_f1 == pytest.approx((0.25**2 + 0.5**2) / 0.75, abs=0.01)
    assert found.weighted_f1 == pytest.approx((0.25**2 + 0.5**2) / 0.75, abs=0.01)
    # In a random order, the expected precision at every rank is the share of positives.
    assert found.mean_ap == pytest.approx((0.25 + 0.5) / 2, abs=0.01)
    assert chance(np.array([0.25, 0.5, 0.0]), truth) == found
    assert chance(np.array([0.25, 0.5, 0.0]), truth, seed=1) != found


@pytest.mark.parametrize(("samples", "positives"), [(1, 1), (4, 1), (6, 3), (5, 5)])
def test_chance_has_the_average_precision_of_a_random_order(samples: int, positives: int) -> None:
    """The average precision of a random order is the mean over all orders."""
    truth = np.zeros((samples, 2), bool)
    truth[:positives, 0] = True
    every = []
    for places in combinations(range(samples), positives):
        ranked = np.isin(np.arange(samples), places)
        every.append(average_precision_score(ranked, -np.arange(samples)))
    assert chance(np.zeros(2), truth).mean_ap == pytest.approx(np.mean(every))


def test_scoring_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        score(np.zeros((3, 2)), np.zeros((3, 2), bool), 0.5)
