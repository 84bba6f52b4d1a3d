"""The numbers that come out: oracles in NumPy's float64, written from the formula alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consumers.build import build
from featurestore.errors import InputError
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.records import BadInput
from featurestore.storage.moments import merge, moments_of, scale_of
from featurestore.storage.store import FeatureStore
from featurestore.training.dataset import FeatureDataset
from tests.conftest import tree_digest
from tests.faults.fakes import SAMPLES, VIEWS, config, loaded, make, make_data
from tests.featurestore.stores import make_store

EPSILON = 1e-6

rows_of = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=30),
    elements=st.floats(-1e4, 1e4, width=32),
)


def check_zscore(rows: np.ndarray, found: np.ndarray) -> None:
    """Within 1e-6 of the float64 result, relative to what cancels in its subtraction."""
    wide = rows.astype(np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    expected = (wide - mean) / (deviation + EPSILON)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    size = (np.abs(wide) + np.abs(mean)) / (deviation + EPSILON) + np.abs(expected)
    np.testing.assert_array_less(np.abs(found - expected), 1e-6 * size + 1e-12)


@given(rows_of, st.data())
def test_zscore_is_numpys_in_float64(rows: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=4)))
    parts = [part for part in np.split(rows, cuts) if len(part)]
    check_zscore(rows, scale_of(merge(moments_of(p) for p in parts)).apply(rows.copy()))


@pytest.mark.parametrize("offset", [1.0, 1e4, 1e8])
def test_a_spread_that_float32_hardly_holds(offset: float) -> None:
    """Steps of one unit in the last place: a sum of squares would give nothing but noise."""
    step = np.spacing(np.float32(offset))
    rows = (offset + step * np.arange(-8, 9)[:, None]).astype(np.float32)
    assert len(np.unique(rows)) >= 9
    check_zscore(rows, scale_of(moments_of(rows)).apply(rows.copy()))


def test_any_order_of_parts_gives_the_same_to_a_tolerance() -> None:
    rng = np.random.default_rng(4)
    rows = (50 + rng.normal(size=(400, 6))).astype(np.float32)
    parts = [moments_of(p) for p in np.split(rows, [3, 90, 91, 250])]
    whole = moments_of(rows)
    for _ in range(20):
        found = merge(parts[i] for i in rng.permutation(len(parts)))
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-12)


# Stores --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("numbers") / "data")


def files(store: Path, out: Path, **options: Any) -> dict[str, str]:
    materialize(FeatureStore(store), out, **options)
    return tree_digest(out)


def test_stored_stats_are_equal_to_the_last_bit_whatever_was_made_first(tmp_path: Path) -> None:
    """They are merged in the order of the chunks, not of their commits."""
    for name, order in (("straight", [0, 1, 2]), ("crooked", [2, 0, 1])):
        make_store(tmp_path / name, chunks=order)
    straight = files(tmp_path / "straight", tmp_path / "out-1")
    assert files(tmp_path / "crooked", tmp_path / "out-2") == straight
    assert any(name.endswith(".stats.npz") for name in straight)


@pytest.mark.parametrize("zscore", ["all", "train", "none"])
def test_dataset_file_and_store_are_one(data: Path, tmp_path: Path, zscore: str) -> None:
    """Item i of the dataset = row of the ``.npy`` = z-score of the raw rows, for every view."""
    store, split = tmp_path / "store", tmp_path / "split.json"
    make(data, store)
    stems = FeatureStore(store).stems
    split.write_text(json.dumps({"train": stems[:9], "dev": stems[9:12], "test": stems[12:]}))
    materialize(FeatureStore(store), tmp_path / "out", zscore=zscore, split_json=split)
    for name in FeatureStore(store).features:
        raw = [FeatureStore(store).read_chunk(name, c) for c in range(5)]
        rows = np.concatenate(raw).reshape(SAMPLES * VIEWS, -1)
        matrix = np.load(tmp_path / "out" / f"{PREFIX}_{name}.npy")
        if zscore == "none":
            np.testing.assert_array_equal(matrix, rows)
        else:
            used = rows[: 9 * VIEWS] if zscore == "train" else rows
            wide = used.astype(np.float64)
            mu, sigma = wide.mean(0).astype("f4"), wide.std(0).astype("f4")
            expected = (rows - mu) / (sigma + np.float32(EPSILON))
            np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-6)
        for view in range(VIEWS):
            dataset = FeatureDataset(store, [name], views=view, zscore=zscore, split_json=split)
            for i in (0, SAMPLES - 1, -1, np.int64(7), np.int32(-3)):
                row = (int(i) % SAMPLES) * VIEWS + view
                np.testing.assert_array_equal(dataset[i][name].numpy(), matrix[row])
            with pytest.raises(IndexError):
                dataset[SAMPLES]


def test_slices_are_as_a_lists(data: Path, tmp_path: Path) -> None:
    make(data, tmp_path / "store")
    dataset = FeatureDataset(tmp_path / "store")
    for piece in (slice(2, 5), slice(None, None, -7), slice(-2, None), slice(5, 5), slice(0, 999)):
        found = dataset[piece]
        expected = [dataset[i] for i in range(SAMPLES)[piece]]
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_moments_count_every_row_placeholders_too(tmp_path: Path) -> None:
    """The published scale is over all rows; the training split's leaves placeholders out."""
    bad = {2: [BadInput(2, "image", "truncated", "")]}
    rows = make_store(tmp_path / "store", bad=bad)
    for name, block in rows.items():
        moments = FeatureStore(tmp_path / "store").moments(name)
        flat = block.reshape(-1, block.shape[2]).astype(np.float64)
        assert moments.count == len(flat) == 44
        np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-12, atol=1e-12)
    assert 2 not in FeatureDataset(tmp_path / "store").indices
    assert 2 in FeatureDataset(tmp_path / "store", bad_samples="include").indices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_kept_without_another_rounding(
    data: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Stored as float32, which holds every value of both: the round trip is exact."""

    def rounded(_fake: Any, _ids: Any, honest: Any) -> Any:
        return (honest() / 3).to(dtype).float()

    with loaded(dict.fromkeys(("clip_text", "blip2_text"), rounded), dtype=dtype):
        build(config(data, tmp_path / "store"))
    rows = torch.from_numpy(FeatureStore(tmp_path / "store").read_chunk("clip_text", 0).copy())
    assert torch.equal(rows.to(dtype).float(), rows)
    assert not torch.equal(rows, rows.round())


# Few samples, or none ------------------------------------------------------------------------


def test_no_sample_one_sample_and_only_bad_ones(data: Path, tmp_path: Path) -> None:
    empty, one, bad = (tmp_path / name for name in ("empty", "one", "bad"))
    empty.mkdir()
    with pytest.raises(InputError, match="No pair") as caught:
        make(empty, tmp_path / "s0")
    assert str(empty) in str(caught.value)
    assert not (tmp_path / "s0").exists()

    one.mkdir()
    for suffix in ("jpg", "json"):
        shutil.copy(data / f"0000003.{suffix}", one)
    assert make(one, tmp_path / "s1", views=1, chunk=16).samples == 1
    files(tmp_path / "s1", tmp_path / "out-1")
    rows = np.load(tmp_path / "out-1" / f"{PREFIX}_clip_text.npy")
    np.testing.assert_array_equal(rows, np.zeros((1, 64), np.float32))  # its own mean

    make_data(bad, 5)
    for path in bad.glob("*.json"):
        path.write_bytes(b"\xff")
    report = make(bad, tmp_path / "s2")
    assert [(b.index, b.reason) for b in report.bad] == [(i, "not-utf8") for i in range(5)]
    files(tmp_path / "s2", tmp_path / "out-2")
    with np.load(tmp_path / "out-2" / f"{PREFIX}_clip_text.stats.npz") as stats:
        assert np.isfinite(stats["mu"]).all()
        assert (stats["sigma"] == 0).all()
    with pytest.raises(InputError, match="No sample"):
        FeatureDataset(tmp_path / "s2")
    assert len(FeatureDataset(tmp_path / "s2", bad_samples="include")) == 5
