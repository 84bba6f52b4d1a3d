"""Memory of results is reused, but never while an array still refers to it."""

import gc
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.system import results

pytestmark = pytest.mark.usefixtures("few_objects")
LARGE = (9000, 1024)  # 35 MiB


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()
    results._free.clear()
    yield
    results._free.clear()


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_reused_when_no_array_refers_to_it() -> None:
    first = results.empty(LARGE)
    assert (first.shape, first.flags.writeable) == (LARGE, True)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    where = address(first)
    del first
    assert address(results.empty((1024, 9000))) == where  # another shape of the same size


def values(kept: Any) -> Any:
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
def test_memory_in_use_is_not_written_to(keep: Callable[[np.ndarray], Any]) -> None:
    array = results.empty(LARGE)
    array[:] = 7
    kept = keep(array)
    before = values(kept)
    del array
    gc.collect()
    for _ in range(3):
        results.empty(LARGE)[:] = -1
    np.testing.assert_array_equal(values(kept), before)


def test_the_kept_memory_is_limited() -> None:
    several = [results.empty(LARGE) for _ in range(5)]
    del several
    assert [len(memory) for memory in results._free] == [9000 * 1024 * 4] * 5
    for i in range(40):
        results.empty((9000 + i, 1024))
    sizes = [len(memory) for memory in results._free]
    assert sum(sizes) <= 256 << 20
    assert sizes == [4096 * (9000 + i) for i in range(40)][-len(sizes) :]  # the last ones
    huge = [results.empty((50 << 20,)) for _ in range(2)]  # 200 MiB each
    del huge
    assert [len(memory) for memory in results._free] == [200 << 20]


def test_results_above_the_limit_are_not_kept() -> None:
    array = results.empty((70 << 20,))  # 280 MiB
    del array
    assert results._free == []


def test_threads_never_get_the_same() -> None:
    def take_turns(number: int) -> None:
        for _ in range(50):
            array = results.empty(LARGE)
            array[::1000] = number
            time.sleep(0.0005)
            assert (array[::1000] == number).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take_turns, range(8)))


def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # refused: no such advice
    assert results.empty(LARGE).shape == LARGE


def test_small_results_are_the_allocators() -> None:
    array = results.empty((10, 3))
    assert array.base is None
    assert array.shape == (10, 3)
    assert results.empty((0, 512)).shape == (0, 512)


def test_a_forked_process_has_separate_memory() -> None:
    array = results.empty(LARGE)
    array[:] = 1
    pid = os.fork()
    if pid == 0:
        array[:] = 2
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert (array == 1).all()
