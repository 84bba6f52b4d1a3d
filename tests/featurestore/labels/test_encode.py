"""Rows of labels, compared with scikit-learn's encoders, and refusals with their row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import LabelBinarizer, MultiLabelBinarizer

from featurestore.errors import ConfigError, InputError
from featurestore.labels.encode import encode_labels, read_classes
from featurestore.labels.label_set import LabelSet

ODD = ["a, b", 'say "hi"', "it's", "猫", "🐈‍⬛", "Ärger", "_x", "$y$", "مرحبا", "new\nline"]


def encoded(values: list[Any], **options: Any) -> LabelSet:
    return encode_labels(values, lambda at: f"row {at}", **options)


def test_lists_are_multi_hot() -> None:
    rng = np.random.default_rng(0)
    values = [[ODD[i] for i in np.flatnonzero(rng.random(len(ODD)) < 0.3)] for _ in range(50)]
    values[7] = [ODD[0], ODD[0]]  # twice is once
    found = encoded(values)
    reference = MultiLabelBinarizer()
    expected = reference.fit_transform(values)
    assert found.kind == "multi-label"
    assert found.classes == tuple(reference.classes_)
    assert found.rows.dtype == np.float32
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(found.targets(), expected)
    assert found.counts().tolist() == expected.sum(0).tolist()


def test_strings_are_one_class() -> None:
    values = [*ODD, *ODD[::-1], ODD[3]]
    found = encoded(values)
    reference = LabelBinarizer()
    expected = reference.fit_transform(values)
    assert found.kind == "class"
    assert found.classes == tuple(reference.classes_)
    np.testing.assert_array_equal(found.rows, expected)
    assert found.targets().dtype == np.int64
    assert [found.classes[i] for i in found.targets()] == values


@pytest.mark.parametrize("values", [[10, 9, 10, 100], np.array([10, 9, 10, 100])])
def test_integers_are_classes_in_the_order_of_numbers(values: Any) -> None:
    found = encoded(list(values))
    assert (found.kind, found.classes) == ("class", ("9", "10", "100"))
    assert found.targets().tolist() == [1, 0, 1, 2]


def test_floats_are_values_and_so_are_integers_among_them() -> None:
    found = encoded([1.5, 2, None, float("nan"), -3.25], name="rating")
    assert (found.kind, found.classes) == ("value", ("rating",))
    assert found.rows.shape == (5, 1)
    np.testing.assert_array_equal(
        found.targets(), np.array([1.5, 2, np.nan, np.nan, -3.25], np.float32)
    )
    assert found.counts().tolist() == [3]


@pytest.mark.parametrize(
    ("values", "targets"),
    [
        (["b", None, "", "a"], [1, -1, -1, 0]),
        ([["b"], None, [], ["a", "b"]], [[0, 1], [np.nan] * 2, [0, 0], [1, 1]]),
    ],
)
def test_samples_without_a_label(values: list[Any], targets: list[Any]) -> None:
    found = encoded(values)
    assert np.isnan(found.rows[1]).all()
    assert found.known.tolist() == [label not in (None, "") for label in values]
    np.testing.assert_array_equal(found.targets(), targets)


def test_given_classes_fix_names_and_order(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["z", "猫", "a, b", 3]), "utf-8")
    found = encoded(["a, b", "z", 3 and "3"], classes=read_classes(path))
    assert found.classes == ("z", "猫", "a, b", "3")
    assert found.targets().tolist() == [2, 0, 3]
    with pytest.raises(InputError, match="label of row 1 is 'q', which is not among the 4"):
        encoded(["z", "q"], classes=read_classes(path))
    with pytest.raises(ConfigError, match="no --classes"):
        encoded([1.5], classes=("a",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, "a", None, 3], "row 1 is a string, and that of row 3 is an integer"),
        ([["a"], "a"], "row 0 is a list, and that of row 1 is a string"),
        (["a", 1.5], "row 0 is a string, and that of row 1 is a float"),
        ([None, ""], "None of 2 samples has a label"),
        ([[], []], "all lists are empty"),
        ([["a"], ["b", None]], "row 1 holds None"),
        ([["a"], ["b", ""]], "row 1 holds ''"),
        (["a", "\ud800"], "row 1 holds"),
        ([1.0, float("inf")], "row 1 is inf"),
        ([1.0, 1e39], "row 1 is 1e"),
        ([{"a": 1}], "row 0 is a dict"),
    ],
)
def test_labels_that_fit_no_kind_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        encoded(values)
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "holds no list"),
        ("[]", "holds no list"),
        ('["a", null]', "entry 1 is no name"),
        ('["a", "b", "a"]', "names the class 'a' twice"),
    ],
)
def test_files_that_list_no_classes(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "c.json")
    with pytest.raises(InputError, match="Could not read"):
        read_classes(tmp_path / "none.json")
