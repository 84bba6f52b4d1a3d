"""Workers that are killed or stopped, one or all of them, at any moment: nothing is lost.

Whatever happens, the store ends as the store of a build by one process.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from featurestore.storage.store import FeatureStore
from tests.conftest import NIGHTLY
from tests.faults.harness import COUNTS, Bench, end
from tests.faults.workers import (
    CHUNKS,
    FIRST,
    SECOND,
    WAITED,
    digest,
    erased,
    finish,
    recorded,
    start,
    stop,
    together,
    until,
)

# Rounds of random kills.
ROUNDS = 200 if NIGHTLY else 2
# Every how many operations there is a kill or a stop.
EVERY = 1 if NIGHTLY else 23


@pytest.fixture(scope="module")
def unsealed(short: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store all of whose chunks have records: the last worker was killed before the seal."""
    path = tmp_path_factory.mktemp("unsealed") / "store"
    pid = stop(short, path, "0/2", SECOND)
    [done] = finish(short, [start(short, path, "1/2")])
    end(pid)
    [killed] = finish(short, [pid])
    assert (done.kind, killed.kind) == ("done", "killed"), (done, killed)
    assert recorded(path) == list(range(CHUNKS))
    assert (path / "records/ledger.jsonl").read_bytes() == b""
    return path


def test_a_killed_worker_is_replaced_by_the_others(short: Bench, store: Path) -> None:
    """And started again while they run, as a scheduler does."""
    first = start(short, store, "0/2", fault={**SECOND, "action": "kill"})
    second = start(short, store, "1/2")
    [killed] = finish(short, [first])
    again = start(short, store, "0/2")
    runs = finish(short, [second, again])
    assert killed.kind == "killed", killed
    COUNTS["SIGKILL worker"] += 1
    assert [run.kind for run in runs] == ["done", "done"], runs
    assert digest(short, store) == short.golden


def test_a_creator_is_killed_at_every_operation(short: Bench, store: Path) -> None:
    """Another worker that waits for it creates the store then."""
    step = 1 if NIGHTLY else 17
    for n in range(1, 60, step):
        shutil.rmtree(store, ignore_errors=True)
        first = stop(short, store, "0/2", {"n": n, "action": "kill", "stops": True})
        second = stop(short, store, "1/2", WAITED)
        for pid in (first, second):
            os.kill(pid, signal.SIGCONT)
        killed, done = finish(short, [first, second])
        assert (killed.kind, done.kind) == ("killed", "done"), (n, killed, done)
        COUNTS["SIGKILL worker"] += 1
        assert digest(short, store) == short.golden, n


def test_workers_are_killed_at_random(short: Bench, store: Path) -> None:
    """One of three, or all of them; then they are started again."""
    chance = random.Random(4)
    killed = 0
    for round_ in range(ROUNDS):
        erased(store)
        running = {k: start(short, store, f"{k}/3") for k in range(3)}
        for _ in range(chance.randrange(1, 5)):
            time.sleep(chance.uniform(0, 0.4))
            ended = range(3) if chance.random() < 0.25 else [chance.randrange(3)]
            for k in ended:
                end(running[k])
            runs = finish(short, [running[k] for k in ended])
            killed += sum(run.kind == "killed" for run in runs)
            running |= {k: start(short, store, f"{k}/3") for k in ended}
        runs = finish(short, list(running.values()))
        assert [run.kind for run in runs] == ["done"] * 3, (round_, runs)
        assert digest(short, store) == short.golden, round_
    COUNTS["SIGKILL worker"] += killed
    assert killed >= (300 if NIGHTLY else 1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_one_worker_after_its_chunk(short: Bench, store: Path, name: str) -> None:
    """The other one, which is slower here, builds all that is left."""
    number = getattr(signal, name)
    other = stop(short, store, "1/2", FIRST)
    [stopped] = finish(short, [start(short, store, "0/2", fault={**SECOND, "action": name})])
    assert (stopped.type, stopped.fired) == ("InterruptedBuildError", 1), stopped
    assert stopped.exit_code == 128 + number
    assert "continue with --resume" in stopped.message
    assert 0 < len(recorded(store)) < CHUNKS
    COUNTS[f"{name} worker"] += 1
    os.kill(other, signal.SIGCONT)
    [done] = finish(short, [other])
    assert done.kind == "done", done
    assert digest(short, store) == short.golden


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_a_failed_operation_of_one_worker_loses_nothing(
    short: Bench, store: Path, action: str
) -> None:
    step = 1 if NIGHTLY else 31
    for n in range(30, 90, step):
        shutil.rmtree(store, ignore_errors=True)
        first = start(short, store, "0/2", fault={"n": n, "action": action})
        second = start(short, store, "1/2")
        failed, done = finish(short, [first, second])
        COUNTS[action + " worker"] += failed.fired
        assert failed.kind in ("error", "done"), (n, failed)
        if done.kind != "done":  # the failed one held the lock as the last one
            [done] = together(short, store, 1)
        [done] = together(short, store, 1)
        assert done.kind == "done", (n, done)
        assert digest(short, store) == short.golden, n


def test_a_whole_group_of_workers_is_killed(short: Bench, store: Path) -> None:
    """As a scheduler kills a job, or the kernel all processes of a container."""
    first = start(short, store, "0/3", group=0, fault={**SECOND, "action": "SIGSTOP"})
    others = [start(short, store, f"{k}/3", group=first) for k in (1, 2)]
    until(lambda: len(recorded(store)) > 1)
    os.killpg(first, signal.SIGKILL)
    runs = finish(short, [first, *others])
    assert runs[0].kind == "killed", runs
    COUNTS["SIGKILL workers"] += sum(run.kind == "killed" for run in runs)
    assert recorded(store)
    runs = together(short, store, 3)
    assert [run.kind for run in runs] == ["done"] * 3, runs
    assert digest(short, store) == short.golden


def test_a_stopped_worker_is_replaced_and_wakes(short: Bench, store: Path) -> None:
    """The others build its chunks, and it builds one of them again: the same one."""
    pid = stop(short, store, "0/2", SECOND)
    COUNTS["SIGSTOP worker"] += 1
    [done] = finish(short, [start(short, store, "1/2")])
    assert (done.kind, done.values[0]["bad"]) == ("done", 1), done
    assert FeatureStore(store).complete
    assert recorded(store) == list(range(CHUNKS))  # it may still write, so nothing is sealed
    os.kill(pid, signal.SIGCONT)
    [woken] = finish(short, [pid])
    assert woken.kind == "done", woken
    assert digest(short, store) == short.golden


def test_a_cut_off_worker_writes_after_the_seal(short: Bench, store: Path) -> None:
    """It has lost its lock, as behind a broken network: the others are alone, and seal the store.

    They also remove what it has begun to write. It is stopped at each operation after it has
    joined.
    """
    template = store.with_name("template")
    [killed] = together(short, template, 1, fault={**SECOND, "action": "kill"})
    assert killed.kind == "killed", killed
    cut_off = {"flock": "ENOLCK"}
    [run] = together(short, store, 1, fault={"n": -1, "action": "none"}, **cut_off)
    for n in range(3, run.operations, 3 if NIGHTLY else 97):
        erased(store, template)
        pid = start(short, store, "0/2", fault={"n": n, "action": "SIGSTOP"}, **cut_off)
        if not _stops(pid):
            finish(short, [pid])
            break
        [done] = finish(short, [start(short, store, "1/2")])
        assert done.kind == "done", (n, done)
        assert digest(short, store) == short.golden, n
        os.kill(pid, signal.SIGCONT)
        [woken] = finish(short, [pid])
        COUNTS["SIGSTOP worker"] += woken.fired
        # Its temporary file may be gone.
        assert woken.kind == "done" or woken.type == "StorageError", (n, woken)
        [again] = together(short, store, 1)
        assert again.values[0]["built"] == 0, (n, again)
        assert digest(short, store) == short.golden, n


def _stops(pid: int) -> bool:
    """Waits until a process is stopped or has ended; whether it is stopped."""
    status = Path(f"/proc/{pid}/stat")
    state = ""

    def is_settled() -> bool:
        nonlocal state
        state = status.read_text().rpartition(")")[2].split()[0]
        return state in "TZ"

    until(is_settled)
    return state == "T"


@pytest.mark.parametrize("flock", ["", "ENOLCK"])
def test_two_creators_at_once(short: Bench, store: Path, flock: str) -> None:
    """One stops at an operation of its creation.

    With locks the other one waits for it; without, it creates the store itself.
    """
    created = short.run([short.build(store)], fault={"n": -1, "action": "none"}).operations
    for n in range(2, min(created, 60), EVERY):
        erased(store)
        pid = stop(short, store, "0/2", {"n": n}, flock=flock)
        other = start(short, store, "1/2", flock=flock)
        if flock:
            [done] = finish(short, [other])
            built = digest(short, store)
            whole = {name: built[name] for name in built if not name.endswith(".partial")}
            assert whole == short.golden, n  # but for what the stopped one is writing
            os.kill(pid, signal.SIGCONT)
            [woken] = finish(short, [pid])
        else:
            os.kill(pid, signal.SIGCONT)
            woken, done = finish(short, [pid, other])
        COUNTS["SIGSTOP worker"] += woken.fired
        assert (woken.kind, done.kind) == ("done", "done"), (n, woken, done)
        assert digest(short, store) == short.golden, n


def test_a_seal_is_killed_at_every_operation(short: Bench, store: Path, unsealed: Path) -> None:
    n, was_killed = 1, True
    while was_killed:
        erased(store, unsealed)
        [run] = together(short, store, 1, fault={"n": n, "action": "kill"})
        was_killed = run.kind == "killed"
        COUNTS["SIGKILL worker"] += was_killed
        assert FeatureStore(store).complete, n
        [done] = together(short, store, 1)
        assert (done.kind, done.values[0]["built"]) == ("done", 0), (n, done)
        assert digest(short, store) == short.golden, n
        n += 1 if NIGHTLY else 7
    assert n > 15


def test_two_processes_seal_at_once(short: Bench, store: Path, unsealed: Path) -> None:
    """Without locks, one stops at an operation of the seal, and the other one does all of it."""
    n, was_stopped = 1, True
    while was_stopped:
        erased(store, unsealed)
        fault = {"n": n, "action": "SIGSTOP"}
        pid = start(short, store, "0/2", fault=fault, flock="ENOLCK")
        if was_stopped := _stops(pid):
            [done] = finish(short, [start(short, store, "1/2", flock="ENOLCK")])
            assert done.kind == "done", (n, done)
            os.kill(pid, signal.SIGCONT)
        [woken] = finish(short, [pid])
        COUNTS["SIGSTOP worker"] += woken.fired
        assert woken.kind == "done", (n, woken)
        [again] = together(short, store, 1)  # removes the temporary files of both
        assert (again.kind, again.values[0]["built"]) == ("done", 0), (n, again)
        assert digest(short, store) == short.golden, n
        n += 1 if NIGHTLY else 4
    assert n > 8


def test_all_workers_get_a_signal_at_once(short: Bench, store: Path) -> None:
    """As when the time of a job array is up: each commits the chunks that it has begun."""
    pids = [stop(short, store, f"{k}/2", FIRST) for k in range(2)]
    for pid in pids:
        COUNTS["SIGTERM worker"] += end(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
    runs = finish(short, pids)
    assert [run.exit_code for run in runs] == [128 + signal.SIGTERM] * 2, runs
    assert 2 <= len(recorded(store)) < CHUNKS
    runs = together(short, store, 2)
    assert [run.kind for run in runs] == ["done"] * 2, runs
    assert digest(short, store) == short.golden
