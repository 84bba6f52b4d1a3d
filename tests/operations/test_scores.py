"""Scores against scikit-learn's, and chance against what theory says."""

from dataclasses import asdict

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from featurestore.errors import InputError
from operations.scores import average_precision, best_threshold, chance, score


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_scikit_learns(seed):
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


def test_average_precision_of_each_class_with_ties_and_without():
    rng = np.random.default_rng(0)
    truth = rng.random((500, 8)) < np.linspace(0.005, 0.9, 8)
    truth[0] = True
    for probability in (rng.random((500, 8)), rng.integers(0, 4, (500, 8)) / 4):
        found = average_precision(probability, truth)
        expected = average_precision_score(truth, probability, average=None)
        np.testing.assert_allclose(found, expected)
    assert np.isnan(average_precision(np.zeros((4, 1)), np.zeros((4, 1), bool))).all()


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    truth, probability = rng.random((50, 3)) < 0.5, rng.integers(0, 3, (50, 3)) / 3
    order = rng.permutation(50)
    found, shuffled = score(probability, truth, 0.3), score(probability[order], truth[order], 0.3)
    assert asdict(shuffled) == pytest.approx(asdict(found))


def test_the_best_threshold_is_in_the_middle_of_equals():
    truth = np.array([[True, False], [False, True]])
    assert best_threshold(np.where(truth, 0.9, 0.2), truth) == pytest.approx(0.55)
    rng = np.random.default_rng(0)
    truth, probability = rng.random((300, 4)) < 0.2, rng.random((300, 4))
    chosen = best_threshold(probability, truth)
    micro = [f1_score(truth, probability > t, average="micro") for t in np.arange(1, 20) / 20]
    assert f1_score(truth, probability > chosen, average="micro") == max(micro)


def test_chance_is_the_expected_score():
    truth = np.zeros((4000, 3), bool)
    truth[:1000, 0] = True  # a quarter
    truth[:2000, 1] = True  # half
    found = chance(np.array([0.25, 0.5, 0.0]), truth)
    # With p drawn and p true: F1 -> 2 p p / (p + p) = p for a class; pooled: sum p^2 / sum p.
    assert found.macro_f1 == pytest.approx((0.25 + 0.5) / 2, abs=0.01)
    assert found.micro_f1 == pytest.approx((0.25**2 + 0.5**2) / 0.75, abs=0.01)
    assert found.weighted_f1 == pytest.approx((0.25**2 + 0.5**2) / 0.75, abs=0.01)
    # Ranked at random, precision is the share of positives wherever one looks.
    assert found.mean_ap == pytest.approx((0.25 + 0.5) / 2, abs=0.01)
    assert chance(np.array([0.25, 0.5, 0.0]), truth) == found
    assert chance(np.array([0.25, 0.5, 0.0]), truth, seed=1) != found


def test_nothing_to_score():
    with pytest.raises(InputError, match="nothing to score"):
        score(np.zeros((3, 2)), np.zeros((3, 2), bool), 0.5)
