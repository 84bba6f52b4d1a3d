"""Memory of results is used again, and never while anybody can still see it."""

import gc
import os

import numpy as np
import pytest
import torch

from featurestore import results

LARGE = (9000, 1024)  # 35 MiB


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    results._free.clear()
    yield
    results._free.clear()


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_nobody_has_it():
    first = results.empty(LARGE)
    assert (first.shape, first.dtype, first.flags.writeable) == (LARGE, np.float32, True)
    assert first.flags.c_contiguous
    where = address(first)
    del first
    assert address(results.empty((1024, 9000))) == where  # another shape of the same size


def values(kept):
    return kept.clone() if isinstance(kept, torch.Tensor) else np.array(kept)


@pytest.mark.parametrize(
    "keep",
    [
        lambda array: array,
        lambda array: array[3:],
        lambda array: array[0, :5].reshape(5, 1),
        lambda array: memoryview(array),
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[1:][2],
        lambda array: array.view(np.uint8)[7],
    ],
)
def test_what_is_kept_in_any_way_is_not_written_to(keep):
    array = results.empty(LARGE)
    array[:] = 7
    kept = keep(array)
    before = values(kept)
    del array
    gc.collect()
    for _ in range(3):
        results.empty(LARGE)[:] = -1
    np.testing.assert_array_equal(values(kept), before)


def test_little_is_kept():
    several = [results.empty(LARGE) for _ in range(5)]
    del several
    assert {size: len(free) for size, free in results._free.items()} == {9000 * 1024 * 4: 2}
    huge = [results.empty((50 << 20,)) for _ in range(2)]  # 200 MiB each
    del huge
    assert len(results._free[200 << 20]) == 1


def test_small_results_are_the_allocators():
    array = results.empty((10, 3))
    assert array.base is None
    assert array.shape == (10, 3)
    assert results.empty((0, 512)).shape == (0, 512)


def test_a_forked_process_has_its_own():
    array = results.empty(LARGE)
    array[:] = 1
    pid = os.fork()
    if pid == 0:
        array[:] = 2
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (array == 1).all()
