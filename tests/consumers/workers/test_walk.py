"""The order of chunks, in a simulation of workers that see only which chunks are committed."""

from __future__ import annotations

import pytest

from benchmarks.simulated_workers import Simulation
from consumers.workers.share import Share
from consumers.workers.walk import Walk

SEEDS = range(12)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def test_equal_workers_build_each_chunk_once() -> None:
    for seed in SEEDS:
        run = Simulation([1.0] * 8, 8 * 25, seed=seed).run()
        assert run.duplicates <= 0.02
        assert run.end_s <= 25 / 0.95


def test_a_slow_worker_is_helped() -> None:
    runs = [Simulation([2.0] + [1.0] * 7, 200, seed=seed).run() for seed in SEEDS]
    assert median([200 / 7.5 / run.end_s for run in runs]) >= 0.92
    assert median([run.duplicates for run in runs]) <= 0.04


@pytest.mark.parametrize("died", [0, 3, 7])
def test_the_chunks_of_a_killed_worker_are_built_by_the_others(died: int) -> None:
    runs = [Simulation([1.0] * 8, 200, dies_s={died: 12.5}, seed=seed).run() for seed in SEEDS]
    assert median([(12.5 + 100 / 7) / run.end_s for run in runs]) >= 0.90


def test_all_but_one_may_die() -> None:
    dies = dict.fromkeys(range(1, 4), 2.5)
    run = Simulation([1.0] * 4, 40, dies_s=dies).run()
    assert set(run.built) == set(range(40))


def test_workers_that_believe_to_be_the_same_one_are_only_slower() -> None:
    """As after a copied line in a job script."""
    committed: set[int] = set()
    now = 0.0
    walks = [Walk(Share(0, 2), 10, lambda: committed, lambda: now) for _ in range(2)]
    while len(committed) < 10:
        now += 1.0
        for walk in walks:
            chunk = walk.claim(1.0)
            chunk = walk.overdue(1.0) if chunk is None else chunk
            committed.update([] if chunk is None else [chunk])
        assert now < 30


def test_the_two_chunks_that_an_owner_is_building_are_left_to_it() -> None:
    committed: set[int] = set()
    now = 0.0
    walk = Walk(Share(1, 2), 8, lambda: committed, lambda: now)
    for chunk in (4, 5, 6, 7):
        assert walk.claim(1.0) == chunk
        committed.add(chunk)
    committed |= {0}
    assert walk.claim(1.0) == 3
    committed.add(3)
    assert walk.claim(1.0) is None  # the owner is building chunks 1 and 2
    assert walk.overdue(1.0) is None
    now = 1.9
    assert walk.overdue(1.0) is None
    now = 2.1
    assert walk.overdue(1.0) in {1, 2}
    committed |= {1, 2}
    assert walk.overdue(1.0) is None
    assert walk.is_complete()


def test_a_chunk_that_was_committed_before_is_not_claimed() -> None:
    walk = Walk(Share(0, 1), 4, lambda: {0, 2})
    assert [walk.claim(1.0) for _ in range(3)] == [1, 3, None]
