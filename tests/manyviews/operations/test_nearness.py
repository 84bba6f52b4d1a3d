"""Nearness against every pair of rows in double precision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from featurestore.records import BadInput, SampleRecord
from manyviews.operations.nearness import Nearness, NearnessSums, advice, usable


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_means_are_those_of_all_pairs() -> None:
    rows = np.random.default_rng(0).normal(0.4, 1, (11, 5, 7)).astype(np.float32)
    sums = NearnessSums()
    for part in (rows[:4], rows[4:5], rows[5:]):
        sums.add(part)
    found = sums.nearness()
    assert found is not None
    wide = rows.astype(np.float64)
    pairs = list(itertools.combinations(range(11), 2))
    own = np.mean([cosine(wide[i, v], wide[i, 0]) for i in range(11) for v in range(1, 5)])
    others = np.mean([cosine(wide[i, v], wide[j, v]) for i, j in pairs for v in range(1, 5)])
    clean = np.mean([cosine(wide[i, 0], wide[j, 0]) for i, j in pairs])
    assert found.samples == 11
    np.testing.assert_allclose((found.own, found.others, found.clean), (own, others, clean), 1e-9)
    assert found.kept == pytest.approx((own - others) / (1 - clean))


@pytest.mark.parametrize("shape", [(1, 5, 3), (4, 1, 3)])
def test_one_sample_or_view_has_nothing_to_compare(shape: tuple[int, int, int]) -> None:
    sums = NearnessSums()
    assert sums.nearness() is None
    sums.add(np.ones(shape, np.float32))
    assert sums.nearness() is None


@pytest.mark.parametrize(
    ("near", "lost"),
    [
        (Nearness(100, own=0.75, others=0.67, clean=0.39), True),  # masked, by a model without it
        (Nearness(100, own=0.91, others=0.40, clean=0.39), False),  # the same words left out
        (Nearness(7, own=0.75, others=0.67, clean=0.39), False),  # too few samples
        (Nearness(100, own=0.999, others=0.998, clean=0.99), False),  # random weights
    ],
)
def test_what_counts_as_lost(near: Nearness, *, lost: bool) -> None:
    assert near.is_lost == lost
    assert f"keep {near.kept:.0%}" in near.text()


def test_bad_and_absent_inputs_are_left_out() -> None:
    bad = (BadInput(1, "image", "truncated", ""),)
    records = [
        SampleRecord(0, "a", None, 0),
        SampleRecord(1, "b", "c", 0, bad),
        SampleRecord(2, None, "d", 0),
    ]
    assert usable(records, "image").tolist() == [0]
    assert usable(records, "text").tolist() == [1, 2]


def test_advice_names_the_table() -> None:
    assert '"drop" in [recipe.text]' in advice("text", "mask-1")
    assert "one that changes less" in advice("text", "given")
    assert "[recipe.image]" in advice("image", "simclr-2")
