import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError
from featurestore.reading.views import ViewPolicy, mix, view_policy

SAMPLES = np.arange(20_000, dtype=np.int64)
WORD = 2**64
ANY = st.integers(-(2**80), 2**80)


def splitmix(number: int) -> int:
    """The published generator's next output from the state ``number``, in plain integers."""
    number = (number + 0x9E3779B97F4A7C15) % WORD
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % WORD
    return number ^ (number >> 31)


def drawn(seed: int, epoch: int, sample: int) -> int:
    return splitmix(splitmix(splitmix(seed % WORD) ^ (epoch % WORD)) ^ sample)


def test_the_published_generator() -> None:
    # Vigna's splitmix64.c with the state 1234567: its first outputs, as many libraries test them.
    golden = 0x9E3779B97F4A7C15
    actual = [splitmix(1234567 + k * golden) for k in range(2)]
    assert actual == [6457827717110365317, 3203168211198807973]


@given(ANY, ANY, st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_draws_equal_plain_integers(seed: int, epoch: int, samples: list[int]) -> None:
    actual = mix(seed, epoch, np.array(samples, np.int64))
    assert actual.tolist() == [drawn(seed, epoch, sample) for sample in samples]


def choose(policy: ViewPolicy, samples: np.ndarray, epoch: int) -> np.ndarray:
    """The views that a policy draws."""
    chosen = policy.choose(samples, epoch)
    assert isinstance(chosen, np.ndarray)
    return chosen


@given(ANY, ANY, st.integers(1, 70), st.lists(st.integers(0, 30_000), min_size=1, max_size=5))
def test_random_is_a_plain_remainder(seed: int, epoch: int, count: int, samples: list[int]) -> None:
    actual = choose(view_policy("random", count, seed), np.array(samples, np.int64), epoch)
    assert actual.tolist() == [drawn(seed, epoch, sample) % count for sample in samples]


@given(ANY, ANY, st.integers(2, 70), st.lists(st.integers(0, 30_000), min_size=1, max_size=5))
def test_a_pair_is_one_of_all_ordered_pairs(
    seed: int, epoch: int, count: int, samples: list[int]
) -> None:
    actual = choose(view_policy("pair", count, seed), np.array(samples, np.int64), epoch)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    assert actual.dtype == np.int64
    numbers = [drawn(seed, epoch, sample) % len(pairs) for sample in samples]
    assert list(map(tuple, actual.tolist())) == [pairs[number] for number in numbers]


def test_all_ordered_pairs_are_equally_likely() -> None:
    for seed in (0, 7):
        actual = choose(view_policy("pair", 5, seed), SAMPLES, 3)
        counts = np.bincount(actual[:, 0] * 5 + actual[:, 1], minlength=25).reshape(5, 5)
        assert (np.diag(counts) == 0).all()
        others = counts[~np.eye(5, dtype=bool)]
        assert ((others - 1000) ** 2 / 1000).sum() < 43.8  # chi², 19 degrees: one in a thousand


def test_two_views_are_each_others_mirror() -> None:
    actual = choose(view_policy("pair", 2), SAMPLES, 0)
    assert (actual.sum(axis=1) == 1).all()


def test_what_is_drawn_belongs_to_the_sample() -> None:
    for name in ("random", "pair"):
        policy = view_policy(name, 70, 5)
        base = choose(policy, SAMPLES, 2)
        order = np.random.default_rng(0).permutation(len(SAMPLES))
        np.testing.assert_array_equal(choose(policy, SAMPLES[order], 2), base[order])
        assert not np.array_equal(choose(policy, SAMPLES, 3), base)
        assert not np.array_equal(choose(view_policy(name, 70, 6), SAMPLES, 2), base)


@pytest.mark.parametrize(
    ("views", "chosen"), [("clean", 0), (3, 3), ("all", "all"), ("mean", "mean")]
)
def test_what_is_the_same_for_all(views: int | str, chosen: int | str) -> None:
    policy = view_policy(views, 4)
    assert policy.choose(SAMPLES, 9) == chosen
    assert policy.is_one == isinstance(chosen, int)
    assert not policy.is_drawn


@pytest.mark.parametrize("views", [4, -1, "k", "3", None, True, 1.0, "Clean", ""])
def test_invalid_views_are_refused(views: bool | float | int | str | None) -> None:
    with pytest.raises(ConfigError, match="view"):
        view_policy(views, 4)


def test_one_view_makes_no_pair() -> None:
    assert choose(view_policy("random", 1), SAMPLES[:3], 0).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="two different views"):
        view_policy("pair", 1)
