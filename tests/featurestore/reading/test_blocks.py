from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.reading.blocks import ChunkedBlocks

VALUES = np.random.default_rng(0).normal(size=(11, 3, 4)).astype(np.float32)
PICKS = st.lists(st.integers(0, 10), max_size=12)


def blocks(cache_bytes: int, read: list[int]) -> ChunkedBlocks:
    def chunk(number: int) -> np.ndarray:
        read.append(number)
        return VALUES[4 * number : 4 * number + 4]

    return ChunkedBlocks(chunk, VALUES.shape, 4, cache_bytes)


@given(PICKS, st.randoms(use_true_random=False), st.sampled_from([0, 192, 10**6]))
def test_equal_to_an_array(samples: list[int], random: Random, cache_bytes: int) -> None:
    picks = np.array(samples, np.int64)
    one = np.array([random.randrange(3) for _ in samples], np.int64)
    two = np.array([[random.randrange(3) for _ in range(2)] for _ in samples], np.int64)
    source = blocks(cache_bytes, [])
    np.testing.assert_array_equal(source.take(picks, None), VALUES[picks])
    np.testing.assert_array_equal(source.take(picks, 2), VALUES[picks, 2])
    numpys: Any = np.int64(1)
    np.testing.assert_array_equal(source.take(picks, numpys), VALUES[picks, 1])
    np.testing.assert_array_equal(source.take(picks, one), VALUES[picks, one])
    np.testing.assert_array_equal(
        source.take(picks, two.reshape(-1, 2)), VALUES[picks[:, None], two.reshape(-1, 2)]
    )


def test_a_batch_reads_each_chunk_once_and_the_last_ones_are_kept() -> None:
    chunk_bytes = 4 * 3 * 4 * 4
    for cache_bytes, again in ((0, [0, 1, 2]), (2 * chunk_bytes, [0, 1, 2]), (3 * chunk_bytes, [])):
        read: list[int] = []
        source = blocks(cache_bytes, read)
        source.take(np.array([10, 0, 5, 1, 9, 4]), None)
        assert read == [0, 1, 2]
        source.take(np.array([8, 7, 3]), 0)
        assert read[3:] == again


def test_what_is_read_is_a_copy() -> None:
    source = blocks(10**6, [])
    source.take(np.array([1, 2]), None)[:] = 7
    np.testing.assert_array_equal(source.take(np.array([1, 2]), None), VALUES[1:3])


@pytest.mark.parametrize("sample", [-1, 11])
def test_out_of_range(sample: int) -> None:
    with pytest.raises(IndexError, match="0 to 10"):
        blocks(0, []).take(np.array([0, sample]), 0)
    with pytest.raises(IndexError, match="0 to 2"):
        blocks(0, []).take(np.array([0]), sample // 3)
