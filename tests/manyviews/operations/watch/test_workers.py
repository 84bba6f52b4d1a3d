"""``status`` of stores that several workers build: from logs, and of real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.commits import COMMITS
from featurestore.storage.store import RUNS
from featurestore.storage.writer import take_lock
from featurestore.system.locks import UNKNOWN, Holder, Unknown, WorkerHolder
from manyviews import main
from manyviews.operations.watch.runs import Run
from manyviews.operations.watch.watch import Looker
from manyviews.operations.watch.workers import (
    find_workers,
    last_word,
    slower_side,
    time_left_s,
    total_rate,
)
from tests import warm
from tests.conftest import ROOT
from tests.featurestore.stores import make_store, record

START = datetime(2026, 1, 1, tzinfo=UTC)
HERE, THERE = socket.gethostname(), "node-2"
CLI = [sys.executable, str(ROOT / "cli.py")]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def run_of(
    share: str | None,
    pid: int,
    *chunks: tuple[float, int],
    host: str = HERE,
    rate: float = 2.0,
    side: str = "backbones",
    end: str = "",
) -> Run:
    """A log with chunks committed at (seconds, samples until then)."""
    run = Run(pid)

    def take(event: str, when: float, **facts: Any) -> None:
        run.take(json.dumps({"time": at(when).isoformat(), "event": event, **facts}).encode())

    take("started", 0, worker=share, host=host, device="cpu")
    for seconds, built in chunks:
        facts: Mapping[str, Any] = {"built": built, "seconds": float(seconds)}
        take("chunk", seconds, **facts, samples_per_s=rate, over_s=10.0, slower_side=side)
    if end:
        take(end, chunks[-1][0] + 1 if chunks else 1, error="out of memory" * (end == "failed"))
    return run


def states(
    runs: list[Run], holders: list[Holder] | Unknown, now: float
) -> list[tuple[str, int, str]]:
    return [(w.share, w.pid, w.state) for w in find_workers(runs, holders, at(now))]


def test_a_build_by_one_process_has_no_workers() -> None:
    assert states([run_of("0/2", 1), run_of(None, 2)], [Holder(2, HERE)], 5) == []
    assert states([], [], 5) == []
    # A repair, or a build that loads its models, after a build by workers.
    assert states([run_of("0/2", 1)], [Holder(2, HERE)], 5) == []


def test_each_worker_has_its_last_word() -> None:
    runs = [
        run_of("3/4", 13, (4, 8), end="failed"),
        run_of("0/4", 10, (4, 8)),
        run_of("2/4", 12, (4, 8), end="finished"),
        run_of("1/4", 11, (4, 8)),
    ]
    holders: list[Holder] = [WorkerHolder(11, HERE), WorkerHolder(15, THERE)]
    assert states(runs, holders, 5) == [
        ("0/4", 10, "killed"),
        ("1/4", 11, "running"),
        ("2/4", 12, "finished"),
        ("3/4", 13, "failed"),
        ("", 15, "starting"),
    ]


def test_a_worker_that_was_started_again_is_listed_once() -> None:
    runs = [run_of("0/2", 1, (4, 8)), run_of("1/2", 2, (4, 8)), run_of("0/2", 3)]
    holders: list[Holder] = [WorkerHolder(2, HERE), WorkerHolder(3, HERE)]
    assert states(runs, holders, 5) == [("0/2", 3, "running"), ("1/2", 2, "running")]


def test_a_number_used_twice_is_two_workers_while_both_run() -> None:
    runs = [run_of("0/1", 1), run_of("0/1", 2)]
    holders: list[Holder] = [WorkerHolder(1, HERE), WorkerHolder(2, HERE)]
    assert states(runs, holders, 5) == [("0/1", 1, "running"), ("0/1", 2, "running")]
    assert states(runs, holders[1:], 5) == [("0/1", 2, "running")]


def test_workers_of_an_earlier_number_are_not_listed() -> None:
    runs = [run_of("0/2", 1, end="finished"), run_of("1/2", 2), run_of("0/3", 3)]
    assert states(runs, [WorkerHolder(3, HERE)], 5) == [("0/3", 3, "running")]


def test_a_worker_on_another_host_is_silent_when_its_log_does_not_grow() -> None:
    """Its name stays in the lock's file until nobody holds the lock."""
    fast, slow = [
        run_of("0/2", 1, (10, 8), (20, 16), host=THERE),
        run_of("1/2", 2, (100, 8), (200, 16), host=THERE),
    ]
    new = run_of("2/3", 3, host=THERE)
    holders: list[Holder] = [WorkerHolder(pid, THERE) for pid in (1, 2, 3)]
    for which in (holders, UNKNOWN):
        assert states([fast], which, 79)[:1] == [("0/2", 1, "running")]
        assert states([fast], which, 81)[:1] == [("0/2", 1, "silent")]
        assert states([slow], which, 490)[:1] == [("1/2", 2, "running")]  # three chunks of 100 s
        assert states([slow], which, 510)[:1] == [("1/2", 2, "silent")]
        assert states([new], which, 590)[:1] == [("2/3", 3, "running")]
        assert states([new], which, 610)[:1] == [("2/3", 3, "silent")]
    assert states([fast], [], 79) == [("0/2", 1, "killed")]  # the lock is free
    # On this host the kernel says which processes run.
    assert states([run_of("0/2", 1, (10, 8))], [WorkerHolder(1, HERE)], 5000)[0][2] == "running"


def test_the_rate_is_that_of_the_running_workers_together() -> None:
    runs = [
        run_of("0/3", 1, (10, 8), (20, 16), rate=2.0),
        run_of("1/3", 2, (10, 8), (22, 16), rate=3.0, side="producers"),
        run_of("2/3", 3, (10, 8), (20, 16), rate=50.0),
    ]
    workers = find_workers(runs, [WorkerHolder(1, HERE), WorkerHolder(2, HERE)], at(24))
    assert total_rate(workers, at(24)) == pytest.approx(5.0)
    # 100 samples are left, of which they have computed 4 * 2 and 2 * 3 since their last commits.
    assert time_left_s(workers, 100, at(24)) == pytest.approx((100 - 8 - 6) / 5)
    assert time_left_s(workers, 10, at(24)) == 0
    ended = find_workers(runs, [], at(24))
    assert time_left_s(ended, 100, at(24)) is None
    assert total_rate(ended, at(24)) == pytest.approx(16 / 20 + 16 / 22 + 16 / 20)
    more = [*runs[1:], run_of("0/3", 4, (10, 8), side="producers")]
    holders = [WorkerHolder(pid, HERE) for pid in (2, 3, 4)]
    assert slower_side(find_workers(more, holders, at(24))) == "producers"


def test_what_explains_the_end_of_a_build_by_workers() -> None:
    runs = [
        run_of("0/3", 1, end="interrupted"),
        run_of("1/3", 2),
        run_of("2/3", 3, end="failed"),
    ]
    for count, state in ((3, "failed"), (2, "killed"), (1, "interrupted")):
        last = last_word(find_workers(runs[:count], [], at(9)))
        assert last is not None
        assert last.state == state


# Stores -----------------------------------------------------------------------------------------


def look(store: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main.run_command(["status", "--store", str(store), *options])
    return code, *capfd.readouterr()


def test_a_complete_store_that_is_not_sealed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    rows = make_store(store, chunks=[1])
    record(store, [2], rows)
    part = Looker(store).look().store
    assert (part.committed, part.done, part.complete, part.sealed) == (2, 7, False, False)
    record(store, [0], rows)
    code, output, _ = look(store, capfd)
    assert code == 0
    line = "11 samples done (100.0%), 3 of 3 chunks, complete, but not sealed; build --resume seals"
    assert output.splitlines()[1] == line + " it"
    facts = json.loads(look(store, capfd, "--json")[1])
    assert (facts["committed"], facts["complete"], facts["sealed"]) == (3, True, False)
    code, _, errors = look(store, capfd, "--watch")
    assert code == 0
    assert "It is not sealed yet, which build --resume does." in errors


def test_every_holder_of_a_shared_lock_is_listed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    make_store(store, chunks=[1])
    locks = [take_lock(store, worker=True, shared=True)]
    facts = json.loads(look(store, capfd, "--json")[1])
    assert facts["holders"] == [[os.getpid(), HERE]]
    assert (facts["lock"], facts["running"], facts["ended"]) == ("held", False, "")
    assert [(w["pid"], w["state"]) for w in facts["workers"]] == [(os.getpid(), "starting")]
    output = look(store, capfd)[1]
    assert f"a worker: process {os.getpid()} on {HERE}: is loading its models" in output
    locks[0].release()
    facts = json.loads(look(store, capfd, "--json")[1])
    assert (facts["holders"], facts["lock"]) == ([], "free")


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_two_workers_one_of_which_is_killed(
    demo_data: Path, checkpoints: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    typed = [*CLI, "build", "--resume", "-q", "--data-dir", str(demo_data / "dataset")]
    typed += ["--store", str(store), "--features", "clip_text", "--device", "cpu"]
    typed += ["--views", "8", "--chunk", "4", "--producers", "1"]
    typed += ["--model", f"clip_text={checkpoints['clip_text']}"]

    def has_recorded(pid: int) -> bool:
        logs = list((store / RUNS).glob(f"*-{pid}.log"))
        return bool(logs) and b'"event": "chunk"' in logs[0].read_bytes()

    first = warm.Popen([*typed, "--worker", "0/2"])
    second = warm.Popen([*typed, "--worker", "1/2"])
    with first, second:
        for process in (first, second):
            wait_for(lambda pid=process.pid: has_recorded(pid), first, second)  # type: ignore[misc]
            process.send_signal(signal.SIGSTOP)  # it does not end before it is looked at
        facts = json.loads(look(store, capfd, "--json")[1])
        workers = {w["worker"]: w for w in facts["workers"]}
        assert [w["state"] for w in workers.values()] == ["running", "running"]
        assert [w["pid"] for w in workers.values()] == [first.pid, second.pid]
        assert {(w["host"], w["device"]) for w in workers.values()} == {(HERE, "cpu")}
        assert facts["committed"] == len(list((store / COMMITS).iterdir())) >= 2
        assert facts["done"] == 4 * facts["committed"]
        assert sorted(facts["holders"]) == sorted([[first.pid, HERE], [second.pid, HERE]])
        rates = [w["samples_per_s"] for w in workers.values()]
        assert min(rates) > 0
        assert facts["samples_per_s"] == pytest.approx(sum(rates), abs=0.01)
        assert facts["eta_s"] is not None
        first.kill()
        first.wait(60)
        output = look(store, capfd)[1]
        assert f"worker 0/2: process {first.pid} on {HERE}, cpu: killed" in output
        assert f"worker 1/2: process {second.pid} on {HERE}, cpu: " in output
        assert "samples/s" in output.splitlines()[-1]
        second.send_signal(signal.SIGCONT)
        assert second.wait(120) in (0, 3)
    facts = json.loads(look(store, capfd, "--json")[1])
    assert [w["state"] for w in facts["workers"]] == ["killed", "finished"]
    assert (facts["complete"], facts["sealed"], facts["ended"]) == (True, True, "complete")
