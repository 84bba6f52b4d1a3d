from __future__ import annotations

import threading

from consumers.workers.assignment import Assignment, Missing, WorkerClaims
from consumers.workers.share import Share
from consumers.workers.walk import Walk
from featurestore.records import Sample
from featurestore.storage.shape import StoreSpec

SPEC = StoreSpec(10, 1, 4, {"clip_image": 8})
SAMPLES = [Sample(i, f"{i}") for i in range(10)]


def test_the_samples_of_the_claimed_chunks_in_order() -> None:
    work = Assignment(Missing([2, 0]), SPEC, SAMPLES)
    assert [sample.index for sample in work] == [8, 9, 0, 1, 2, 3]
    assert [work.next_chunk() for _ in range(3)] == [2, 0, None]


def test_the_main_loop_may_be_first() -> None:
    work = Assignment(Missing([1]), SPEC, SAMPLES)
    assert work.next_chunk() == 1
    assert [sample.index for sample in work] == [4, 5, 6, 7]
    assert work.next_chunk() is None


def test_the_samples_continue_when_a_chunk_is_assigned() -> None:
    work = Assignment(Missing([0]), SPEC, SAMPLES)
    assert len(list(work)) == 4
    assert next(work, None) is None
    work.assign(2)
    assert [sample.index for sample in work] == [8, 9]
    assert [work.next_chunk() for _ in range(3)] == [0, 2, None]


def test_waiting_ends_when_another_worker_commits_the_last_chunk() -> None:
    committed: set[int] = {0}
    claims = WorkerClaims(Walk(Share(1, 2), 2, lambda: committed), lambda: 100.0)
    assert claims.claim() == 1
    committed.add(1)
    committed.discard(0)
    timer = threading.Timer(0.1, committed.add, [0])
    timer.start()
    assert claims.wait([]) is None
    timer.join()


def test_waiting_ends_with_a_signal() -> None:
    claims = WorkerClaims(Walk(Share(1, 2), 2, set), lambda: 100.0)
    assert claims.wait([15]) is None


def test_overdue_chunks_are_built() -> None:
    claims = WorkerClaims(Walk(Share(1, 2), 3, lambda: {1, 2}), lambda: 0.05)
    assert claims.claim() is None
    assert claims.wait([]) == 0


def test_a_worker_that_is_the_only_one_left_waits_for_nobody() -> None:
    """Although it has not built a chunk, so that it does not know how long one takes."""
    alive = [True]
    claims = WorkerClaims(
        Walk(Share(1, 2), 3, lambda: {1, 2}), lambda: 0.0, is_only=lambda: not alive.pop()
    )
    alive[:] = [False, True, True]
    assert claims.wait([]) == 0
    assert alive == []


def test_overdue_chunks_are_left_to_others_if_versions_may_differ() -> None:
    """Two workers with other versions would record other differences with the same chunk."""
    committed = {1, 2}
    claims = WorkerClaims(Walk(Share(1, 2), 3, lambda: committed, remakes=False), lambda: 0.05)
    timer = threading.Timer(1.0, committed.add, [0])
    timer.start()
    assert claims.wait([]) is None
    timer.join()
