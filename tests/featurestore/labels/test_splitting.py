"""Drawn splits: sizes, shares of each label, and repeatability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.errors import ConfigError, InputError
from featurestore.labels.label_set import LabelSet
from featurestore.labels.splitting import draw_split, named_parts, parse_fractions, part_counts

SHARES = (0.8, 0.1, 0.1)


def one_class(sizes: list[int]) -> LabelSet:
    numbers = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.eye(len(sizes), dtype=np.float32)[numbers]
    return LabelSet("class", tuple(map(str, range(len(sizes)))), rows)


def sizes_of(parts: np.ndarray) -> list[int]:
    counts: list[int] = np.bincount(parts, minlength=3).tolist()
    return counts


def test_every_class_has_its_shares() -> None:
    labels = one_class([500, 100, 37, 10, 10, 3, 1])
    parts = draw_split(labels, SHARES, 0)
    assert abs(np.array(sizes_of(parts)) - len(parts) * np.array(SHARES)).max() <= 1
    for number, size in enumerate([500, 100, 37, 10, 10, 3, 1]):
        found = sizes_of(parts[labels.targets() == number])
        assert abs(np.array(found) - size * np.array(SHARES)).max() < 2, number


def test_ten_of_each_class_give_one_each() -> None:
    labels = one_class([10] * 4)
    parts = draw_split(labels, SHARES, 3)
    for number in range(4):
        assert sizes_of(parts[labels.targets() == number]) == [8, 1, 1]


def test_a_seed_repeats_and_others_differ() -> None:
    labels = one_class([60, 30, 10])
    first = draw_split(labels, SHARES, 5)
    np.testing.assert_array_equal(first, draw_split(labels, SHARES, 5))
    assert (first != draw_split(labels, SHARES, 6)).any()
    # Which samples of a class are in test is random: over many seeds each of them is.
    drawn = np.array([draw_split(labels, SHARES, seed) == 2 for seed in range(200)])
    assert drawn.any(axis=0).all()


def test_several_labels_a_sample_have_their_shares() -> None:
    rng = np.random.default_rng(0)
    frequency = np.array([0.5, 0.3, 0.1, 0.05, 0.02])
    rows = (rng.random((1000, 5)) < frequency).astype(np.float32)
    rows[:20] = np.nan
    labels = LabelSet("multi-label", tuple("abcde"), rows)
    parts = draw_split(labels, SHARES, 0)
    assert abs(np.array(sizes_of(parts)) - 1000 * np.array(SHARES)).max() <= 20
    hot = np.nan_to_num(rows)
    for column in range(5):
        found = [hot[parts == part, column].sum() for part in range(3)]
        expected = hot[:, column].sum() * np.array(SHARES)
        # A random split of a label with 20 samples misses these bounds in most draws.
        assert abs(found - expected).max() <= max(1.5, 0.02 * hot[:, column].sum()), column
    assert (parts[:20] >= 0).all()


def test_values_have_the_same_spread_in_every_part() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(400, 1))).astype(np.float32)
    parts = draw_split(LabelSet("value", ("v",), values), SHARES, 0)
    assert sizes_of(parts) == [320, 40, 40]
    whole = np.quantile(values, [0.25, 0.5, 0.75])
    for part in range(3):
        found = np.quantile(values[parts == part], [0.25, 0.5, 0.75])
        np.testing.assert_allclose(found, whole, rtol=0.1)


@pytest.mark.parametrize("kind", ["class", "multi-label", "value"])
@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_no_part_of_a_small_collection_is_empty(kind: Any, count: int) -> None:
    rows = np.ones((count, 1), np.float32)
    parts = draw_split(LabelSet(kind, ("a",), rows), SHARES, 0)
    assert min(sizes_of(parts)) >= 1
    assert sizes_of(draw_split(LabelSet(kind, ("a",), rows), (0.5, 0.0, 0.5), 0))[1] == 0


@pytest.mark.parametrize(
    "text", ["0.8,0.1", "0.8,0.1,0.2", "0,0.5,0.5", "1.1,-0.1,0", "a,b,c", "", "nan,0.5,0.5"]
)
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"whose sum is 1, as in 0\.8,0\.1,0\.1; found"):
        parse_fractions(text)


def test_names_of_parts() -> None:
    names = ["train", "Training", "val", "VALIDATION", "dev", "valid", "test", None, ""]
    parts = named_parts(names, str)
    assert parts.tolist() == [0, 0, 1, 1, 1, 1, 2, -1, -1]
    assert part_counts(parts) == {"train": 2, "dev": 4, "test": 1, "none": 2}
    with pytest.raises(InputError, match="The split of row 1 is 'restval'"):
        named_parts(["train", "restval"], lambda at: f"row {at}")
