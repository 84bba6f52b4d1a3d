import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.storage.moments import Moments, Scale, merge, moments_of, scale_of

rows_of = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.floats(-1e6, 1e6, width=32),
)


def assert_same(actual: Moments, rows: np.ndarray) -> None:
    """Compares with NumPy's mean and deviation in extended precision."""
    wide = rows.astype(np.longdouble)
    largest = max(float(np.abs(wide).max()), 1e-300)
    assert actual.count == len(rows)
    assert actual.mean.dtype == actual.sigma.dtype == np.float64
    np.testing.assert_allclose(actual.mean, wide.mean(0), rtol=1e-12, atol=1e-14 * largest)
    np.testing.assert_allclose(actual.sigma, wide.std(0), rtol=1e-9, atol=1e-13 * largest)


@given(rows_of)
def test_equal_to_numpy(rows: np.ndarray) -> None:
    assert_same(moments_of(rows), rows)


@given(rows_of, st.data())
def test_any_split_merges_to_the_same(rows: np.ndarray, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(rows)), unique=True, max_size=6))
    parts = [p for p in np.split(rows, sorted(cuts)) if len(p)]
    assert_same(merge(moments_of(p) for p in parts), rows)


def test_the_order_of_merging_is_kept_to_the_last_bit() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    parts = [moments_of(p) for p in np.split(rows, [7, 50, 51, 200])]
    first, second = merge(parts), merge(iter(parts))
    assert first.mean.tobytes() == second.mean.tobytes()
    assert first.m2.tobytes() == second.m2.tobytes()


def test_a_small_spread_far_from_zero() -> None:
    # float32 has steps of 8 at 1e8, so the rows are float64 here; a sum of squares gives noise.
    rng = np.random.default_rng(1)
    rows: np.ndarray = 1e8 + 1e-3 * rng.normal(size=(10_000, 3))
    actual = merge(moments_of(p) for p in np.array_split(rows, 13))
    expected = rows.astype(np.longdouble).std(0)
    np.testing.assert_allclose(actual.sigma, expected, rtol=1e-6)
    naive = np.sqrt(np.abs((rows**2).mean(0) - rows.mean(0) ** 2))
    assert (np.abs(naive / expected - 1) > 0.1).all()  # confirms that the case is hard


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-30, 1e8, 3.0e38, np.float32(1) / 3])
def test_a_constant_column_has_no_deviation_at_all(value: float) -> None:
    rows = np.full((1001, 2), value, np.float32)
    for actual in (moments_of(rows), merge(moments_of(p) for p in np.array_split(rows, 7))):
        assert (actual.sigma == 0.0).all()
        assert (actual.mean == np.float64(np.float32(value))).all()
        assert (scale_of(actual).apply(rows.copy()) == 0.0).all()


def test_one_row() -> None:
    rows = np.array([[1.5, -2.0]], np.float32)
    one = moments_of(rows)
    assert (one.count, one.mean.tolist(), one.sigma.tolist()) == (1, [1.5, -2.0], [0.0, 0.0])
    assert scale_of(one).apply(rows.copy()).tolist() == [[0.0, 0.0]]


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="no rows"):
        merge([])
    with pytest.raises(ValueError, match="no rows"):
        merge([Moments(0, np.zeros(2), np.zeros(2))])


def test_the_rows_are_not_changed() -> None:
    rows = np.ones((3, 2), np.float32)
    rows.flags.writeable = False
    moments_of(rows)
    assert (rows == 1).all()


@given(rows_of)
def test_the_scale_is_the_formula_in_float32(rows: np.ndarray) -> None:
    mu = rows.astype(np.float64).mean(0).astype(np.float32)
    sigma = rows.astype(np.float64).std(0).astype(np.float32)
    expected = (rows - mu) / (sigma + np.float32(1e-6))
    assert expected.dtype == np.float32
    given_rows = rows.copy()
    actual = Scale(mu, sigma).apply(given_rows)
    assert actual is given_rows
    assert actual.tobytes() == expected.tobytes()


def test_scale_of_is_float32_without_epsilon() -> None:
    scale = scale_of(moments_of(np.array([[0.0], [2.0]], np.float32)))
    assert scale.mu.dtype == scale.sigma.dtype == np.float32
    assert (scale.mu.tolist(), scale.sigma.tolist()) == ([1.0], [1.0])
