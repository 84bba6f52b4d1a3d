"""SIGKILL at a random time: of the build, of a producer, of all, and again while it resumes.

Here the producers are started as in every build, and every write is synced.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from featurestore.system.locks import lock_holder
from tests.conftest import NIGHTLY
from tests.faults.harness import (
    COUNTS,
    SAMPLES,
    Bench,
    Run,
    Zygote,
    end,
    namespaces_allowed,
)

# Rounds per kind of kill: 5 and 500 in all.
ROUNDS = {"parent": 1, "producer": 2, "group": 1, "resume": 1}
if NIGHTLY:
    ROUNDS = {"parent": 150, "producer": 100, "group": 100, "resume": 150}
PER_CASE = 25 if NIGHTLY else 2
ATTEMPTS = 20


def rounds(kind: str) -> list[Any]:
    starts = range(0, ROUNDS[kind], PER_CASE)
    return [range(s, min(s + PER_CASE, ROUNDS[kind])) for s in starts]


@pytest.fixture(scope="session")
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench with a private ``/dev/shm``, if this machine allows it."""
    mounts = "mount -t tmpfs tmpfs /dev/shm" if namespaces_allowed() else ""
    zygote = Zygote(mounts)
    yield Bench(tmp_path_factory.mktemp("killed"), zygote)
    zygote.close()


@pytest.fixture(scope="session")
def seconds(own_memory: Bench, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Duration of an uninterrupted build in seconds."""
    store = tmp_path_factory.mktemp("timed") / "store"
    start = time.monotonic()
    assert own_memory.run([own_memory.build(store, producers=2)], forked=False).kind == "done"
    return time.monotonic() - start


def moment(rng: random.Random, seconds: float, attempt: int) -> float:
    """When to kill. What came too late is tried sooner: ``seconds`` may be of a slower minute."""
    return rng.uniform(0, seconds / 2 ** (attempt % 4))


def begin(bench: Bench, store: Path, **changes: Any) -> int:
    task = bench.task([bench.build(store, producers=2, **changes)], forked=False, group=0)
    return bench.zygote.start(task)


def killed(bench: Bench, store: Path, wait_s: float, *, group: bool = False, **more: Any) -> Run:
    """A build that is killed after ``wait_s``, if it still runs then."""
    pid = begin(bench, store, **more)
    time.sleep(wait_s)
    end(-pid if group else pid)
    run = bench.zygote.wait(pid)
    bench.check(run)
    if run.kind == "killed":
        assert run.code == -9, run
        COUNTS["SIGKILL group" if group else "SIGKILL"] += 1
        assert lock_holder(store / "records/runs/lock") is None
    return run


def ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def check_memory(bench: Bench, before: list[str]) -> None:
    if namespaces_allowed():
        assert bench.value(("list", "/dev/shm")) == before


@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
@pytest.mark.parametrize("part", range(max(len(rounds("parent")), len(rounds("group")))))
def test_kill_of_the_build(
    own_memory: Bench, seconds: float, store: Path, group: bool, part: int
) -> None:
    cases = rounds("group" if group else "parent")
    if part >= len(cases):
        return  # the other kind has more rounds
    before = own_memory.value(("list", "/dev/shm"))
    for seed in cases[part]:
        rng = random.Random(f"{group} {seed}")
        for tried in range(ATTEMPTS):
            shutil.rmtree(store, ignore_errors=True)
            wait_s = moment(rng, seconds, tried)
            print(f"seed {seed}: SIGKILL after {wait_s:.3f} s")
            run = killed(own_memory, store, wait_s, group=group)
            if run.kind == "killed":
                break
        assert run.kind == "killed", "no kill hit the build"
        own_memory.recover(store, f"seed {seed}, killed after {wait_s:.3f} s")
    check_memory(own_memory, before)


@pytest.mark.parametrize("seeds", rounds("producer"), ids=str)
def test_kill_of_a_producer(own_memory: Bench, seconds: float, store: Path, seeds: range) -> None:
    """The build replaces the process, or names the one that ended; it never hangs."""
    for seed in seeds:
        rng = random.Random(f"producer {seed}")
        for tried in range(ATTEMPTS):
            shutil.rmtree(store, ignore_errors=True)
            wait_s = moment(rng, seconds, tried)
            print(f"seed {seed}: SIGKILL of a producer after {wait_s:.3f} s")
            pid = begin(own_memory, store)
            time.sleep(wait_s)
            living = [c.pid for c in psutil.Process(pid).children() if not ended(c)]
            hit = bool(living) and end(rng.choice(living))
            run = own_memory.zygote.wait(pid)
            own_memory.check(run)
            if hit:
                break
        assert hit, "no producer was met alive"
        COUNTS["SIGKILL producer"] += 1
        if run.kind == "error":
            assert run.type == "ProducerError", run
            assert "SIGKILL" in run.message, run
            assert run.exit_code == 1, run
        else:
            assert run.kind == "done", run
            assert run.values[0]["built"] == SAMPLES
            assert run.values[0]["bad"] == 1, "a sample was blamed for a kill"
        own_memory.recover(store, f"seed {seed}, producer killed after {wait_s:.3f} s")


@pytest.mark.parametrize("seeds", rounds("resume"), ids=str)
def test_kill_of_the_resume(own_memory: Bench, seconds: float, store: Path, seeds: range) -> None:
    """Killed, and up to five times again while it resumes."""
    for seed in seeds:
        rng = random.Random(f"resume {seed}")
        shutil.rmtree(store, ignore_errors=True)
        wanted, kills = rng.randint(2, 6), 0
        for tried in range(ATTEMPTS):
            wait_s = moment(rng, seconds, tried)
            print(f"seed {seed}: kill {kills + 1} after {wait_s:.3f} s")
            group = rng.random() < 0.3
            run = killed(own_memory, store, wait_s, group=group, resume=True)
            if run.kind == "killed":
                kills += 1
            elif kills == 0:  # too late: once more from nothing
                shutil.rmtree(store)
            if kills == wanted or (kills and run.kind == "done"):
                break
        assert kills > 0, "no kill hit the build"
        own_memory.recover(store, f"seed {seed}")


def test_a_kill_in_each_chunk_of_a_resume(own_memory: Bench, store: Path) -> None:
    """A resume from every number of committed chunks: only the missing samples are built."""
    for n, left in ((40, 11), (100, 7), (130, 3)):
        shutil.rmtree(store, ignore_errors=True)
        run = own_memory.fault(own_memory.build(store), n, "kill")
        assert run.kind == "killed", run
        again = own_memory.run([own_memory.build(store, resume=True)])
        assert again.values[0]["built"] == left, again
        own_memory.recover(store, run)
