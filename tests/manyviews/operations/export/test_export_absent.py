"""Exports of samples without an image or a text: zeros that are not scaled, and ``present``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manyviews.operations.export.request import ExportRequest
from manyviews.operations.export.run import export
from tests.featurestore.stores import StoreAndRows, make_generic_store
from tests.manyviews.operations.export.test_export import DIMS, FORMATS, READERS, VIEWS

ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
KEPT = {"clip_image": [0, 1, 3, 4, 5, 6, 7, 8, 10], "clip_text": [0, 2, 3, 8, 10]}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("absent") / "store"
    return path, make_generic_store(path, ABSENT, dims=DIMS, views=VIEWS, chunk=8)


def present_in_order(features: list[str]) -> np.ndarray:
    return np.array([[i in KEPT[name] for name in features] for i in range(11)])


@pytest.mark.parametrize("format", FORMATS)
def test_absent_rows_are_zeros_and_marked(
    stored: StoreAndRows, tmp_path: Path, format: str
) -> None:
    path, rows = stored
    export(ExportRequest(store=path, out_dir=tmp_path / "out", format=format))
    found = READERS[format](tmp_path / "out")
    assert found.keys() == {"stem", "index", "view", "bad", "present", *DIMS}
    marks = present_in_order(list(DIMS)).repeat(VIEWS, axis=0)
    np.testing.assert_array_equal(found["present"], marks)
    assert found["present"].dtype == bool
    for name, kept in KEPT.items():
        wide = rows[name].astype(np.float64)
        used = wide[kept].reshape(-1, wide.shape[2])
        scaled = (wide - used.mean(axis=0)) / (used.std(axis=0) + 1e-6)
        actual = found[name].reshape(wide.shape)
        np.testing.assert_allclose(actual[kept], scaled[kept], atol=2e-5)
        assert not actual[[i for i in range(11) if i not in kept]].any()
    described = json.loads((tmp_path / "out/_export.json").read_text())
    assert described["absent"] == {"clip_image": 2, "clip_text": 6}


def test_present_is_of_the_chosen_features_in_their_order(
    stored: StoreAndRows, tmp_path: Path
) -> None:
    names = ("clip_text", "clip_image")
    export(
        ExportRequest(
            store=stored[0], out_dir=tmp_path / "out", format="npy", features=names, views=(0,)
        )
    )
    marks = np.load(tmp_path / "out/present.npy")
    np.testing.assert_array_equal(marks, present_in_order(list(names)))


@pytest.mark.parametrize("format", FORMATS)
def test_no_column_where_nothing_is_absent(tmp_path: Path, format: str) -> None:
    images = dict.fromkeys(range(11), "image")  # no feature uses them
    make_generic_store(tmp_path / "store", images, dims={"clip_text": 16}, views=VIEWS, chunk=8)
    export(ExportRequest(store=tmp_path / "store", out_dir=tmp_path / "out", format=format))
    found = READERS[format](tmp_path / "out")
    assert found.keys() == {"stem", "index", "view", "bad", "clip_text"}
    assert "absent" not in json.loads((tmp_path / "out/_export.json").read_text())
