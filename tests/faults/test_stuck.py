"""Processes that SIGKILL does not end: builds, checks and ``close`` continue without them.

They wait in the kernel for a file system that does not answer (``stuck``), as with a hard NFS
mount. Where none may be mounted, one test takes the end of a process away from its parent instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InterruptedBuildError, ProducerError
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from manyviews import main
from manyviews.operations.check.reading import Reading, read
from producers import process
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from tests import forked
from tests.conftest import tree_digest
from tests.faults.fakes import CHUNK, make, make_data
from tests.faults.harness import COUNTS
from tests.faults.stuck import mounted, state
from tests.producers.test_pool import (
    SAMPLES,
    VIEWS,
    Made,
    children,
    eventually,
    fds,
    job_for,
    plots,
    pool_for,
    take_all,
    write,
)

KILL_S, TIMEOUT_S = 1.0, 2.0


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process is left alone after a second, and ends with its file system."""
    monkeypatch.setattr(process, "END_S", KILL_S)
    before = fds()
    assert not children()
    yield
    eventually(lambda: not children(), 30)
    process._collect()
    assert not process._left
    assert fds() == before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    with pool_for(write(tmp_path_factory.mktemp("calm") / "data", plots()), producers=1) as pool:
        return take_all(pool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data", plots())


def stuck_children() -> list[int]:
    return [child.pid for child in children() if state(child.pid) == "D"]


def test_a_producer_that_does_not_end_is_replaced(
    folder: Path, tmp_path: Path, undisturbed: list[Made]
) -> None:
    """The sample is tried twice, then has a placeholder; no other sample is affected."""
    with mounted(folder, tmp_path / "mount", ["s04.json"]) as mount:
        start = time.monotonic()
        made, slots, held = [], [], set()
        with pool_for(mount.path, slots=2, timeout_s=TIMEOUT_S) as pool:
            for _ in range(SAMPLES):
                views = pool.take()
                held |= {slot for each in pool._held.values() for slot in each}
                slots.append(views.slot)
                ids, lengths = views.arrays.ids[0].tolist(), views.arrays.lengths[0].tolist()
                made.append((views.record, ids, lengths))
                assert views.slot not in held
                pool.release(views)
            waits = stuck_children()
            assert len(waits) == len(pool._held) == 2
            assert pool.replaced == {
                f"timeout; process {pid} at sample 's04' does not end": 1 for pid in pool._held
            }
            assert sorted(waits) == sorted(pool._held)
        assert time.monotonic() - start < 60
        assert stuck_children() == waits
        COUNTS["process that does not end"] += 2
    # Two slots, and one for each of which a process may have its hands in.
    assert len(held) >= 2
    assert max(slots) <= 2 + len(held)
    (bad,) = [bad for record, _, _ in made for bad in record.bad]
    assert (bad.index, bad.reason) == (4, "timeout")
    assert bad.detail == "no result within 2 s, 2 times"  # no pid: it goes into the store
    assert made[4][2] == [0] * VIEWS
    assert made[:4] + made[5:] == undisturbed[:4] + undisturbed[5:]


def test_a_slot_is_used_again_once_its_process_has_ended(
    folder: Path, tmp_path: Path, undisturbed: list[Made]
) -> None:
    """The file system answers before the second try: a short outage changes nothing."""
    with (
        mounted(folder, tmp_path / "mount", ["s04.json"]) as mount,
        ProducerPool(
            job_for(mount.path, 3), scan(mount.path).samples, producers=1, timeout_s=TIMEOUT_S
        ) as pool,
    ):
        for _ in range(4):
            pool.release(pool.take())

        released: list[int] = []

        def look() -> None:
            if pool.replaced.total() == 1 and not released:
                released.extend(pool._held)
                mount.release()

        record = pool.take(look).record
        assert record.index == 4
        assert len(released) == 1
        assert len(pool.ring.slots) == 3 + len(pool._held[released[0]])
        COUNTS["process that does not end"] += 1
    assert undisturbed[4][0].index == 4


def test_two_samples_that_do_not_end_are_no_matter_of_samples(folder: Path, tmp_path: Path) -> None:
    with mounted(folder, tmp_path / "mount", ["s04.json", "s05.json"]) as mount:
        start = time.monotonic()
        with (
            pytest.raises(ProducerError) as caught,
            pool_for(mount.path, timeout_s=TIMEOUT_S) as pool,
        ):
            take_all(pool)
        assert time.monotonic() - start < 60
        message, waits = str(caught.value), stuck_children()
        assert 2 <= len(waits) <= 3  # the first sample may have been tried twice
        assert all(f"Process {pid} at sample 's0" in message for pid in waits)
        assert "'s04'" in message
        assert "'s05'" in message
        assert "network file system" in message
        assert "--resume" in message
        assert message.count("\n") < 4
        COUNTS["process that does not end"] += len(waits)


def test_close_does_not_wait_for_it(folder: Path, tmp_path: Path) -> None:
    """Leaving the block does not wait for it; the error names it."""
    with mounted(folder, tmp_path / "mount", ["s01.json"]) as mount:
        with pytest.raises(InterruptedBuildError) as caught, pool_for(mount.path) as pool:  # noqa: PT012
            pool.release(pool.take())
            assert mount.wait_for_one() == "s01.json"
            start = time.monotonic()
            raise InterruptedBuildError(signal.SIGINT, "Stopped.")
        assert time.monotonic() - start < KILL_S + 10
        (pid,) = stuck_children()
        assert caught.value.__notes__ == [
            f"Process {pid} at sample 's01' did not end after SIGKILL."
        ]
        COUNTS["process that does not end"] += 1


def test_a_command_prints_what_does_not_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        error = InterruptedBuildError(signal.SIGINT, "Stopped.")
        error.add_note("Process 1 did not end after SIGKILL.")
        raise error

    monkeypatch.setattr(main.cli, "main", interrupted)
    assert main.run_command([]) == 130
    assert capsys.readouterr().err == "Stopped.\nProcess 1 did not end after SIGKILL.\n"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make(make_data(folder / "data", 3 * CHUNK), folder / "store")
    return folder


def test_a_build_is_finished_without_it(golden: Path, tmp_path: Path) -> None:
    data = golden / "data"
    first = scan(data).samples[CHUNK]
    with mounted(data, tmp_path / "mount", [str(first.text_name)]) as mount:
        store = tmp_path / "store"
        make(mount.path, store, producers=2, sample_timeout_s=TIMEOUT_S)
        assert len(stuck_children()) == 2
        COUNTS["process that does not end"] += 2
    assert verify(store).findings == []
    (bad,) = FeatureStore(store).bad_inputs
    assert (bad.index, bad.modality, bad.reason) == (CHUNK, "text", "timeout")
    expected, found = tree_digest(golden / "store"), tree_digest(store)
    chunks = [
        name for name in expected if "/c." in name and not name.split("/c.")[1].startswith("1.")
    ]
    assert {name: found[name] for name in chunks} == {name: expected[name] for name in chunks}


def test_a_check_names_the_file_and_reads_the_rest(folder: Path, tmp_path: Path) -> None:
    honest = read(Reading(pair_source(folder)), scan(folder).samples, 2, 60.0)
    with mounted(folder, tmp_path / "mount", ["s07.jpg"]) as mount:
        looks = read(Reading(pair_source(mount.path)), scan(mount.path).samples, 2, TIMEOUT_S)
        COUNTS["process that does not end"] += 2
    assert looks[7].image_bad == ("timeout", "no result within 2 s, 2 times")
    assert looks[7].text_bad is None
    assert looks[7].words == honest[7].words
    assert [x for x in looks if x.index != 7] == [x for x in honest if x.index != 7]


class Endless(forked.Forked):
    """A process whose end does not reach its parent, for the first ``left`` of them."""

    left = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._endless = Endless.left > 0
        Endless.left -= 1

    def kill(self) -> None:
        if not self._endless:
            super().kill()

    def wait(self, timeout: float | None = None) -> int:
        if self._endless:
            assert timeout is not None, "a wait without a limit"
            time.sleep(timeout)
            raise subprocess.TimeoutExpired("producer", timeout)
        return super().wait(timeout)


def test_wherever_no_file_system_may_be_mounted(
    folder: Path, undisturbed: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first producer is stopped, and neither signals nor waits reach it."""
    monkeypatch.setattr("producers.process.subprocess.Popen", Endless)
    monkeypatch.setattr(Endless, "left", 1)
    with pool_for(folder, producers=1, timeout_s=TIMEOUT_S) as pool:
        made = [pool.take()]
        (worker,) = pool._workers
        pid = worker.child.pid
        os.kill(pid, signal.SIGSTOP)
        pool.release(made[0])
        records = [record for record, _, _ in take_all(pool)]
        assert list(pool.replaced.values()) == [1]
        assert f"process {pid} at sample " in next(iter(pool.replaced))
    assert state(pid) == "T"
    os.kill(pid, signal.SIGKILL)
    assert records == [record for record, _, _ in undisturbed[1:]]
