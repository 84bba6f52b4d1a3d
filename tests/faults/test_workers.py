"""Several workers of one build: real processes that are killed, stopped and started again.

Whatever happens, the store ends as the store of a build by one process.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.commits import COMMITS
from featurestore.storage.store import FeatureStore
from featurestore.system.locks import lock_holders
from tests.faults.harness import COUNTS, NIGHTLY, SAMPLES, Bench, Run, end

LOCK = "records/runs/lock"
# Rounds of random kills.
ROUNDS = 300 if NIGHTLY else 6
# The moment before the second record of a worker is created; its first chunk is committed.
SECOND = {"n": 2, "only": ["link"]}
ONE = {"features": ["clip_text"], "batch_sizes": {"clip_text": 16}}


def start(bench: Bench, store: Path, worker: str, **more: Any) -> int:
    """Starts a worker; returns its process id."""
    fields = {"resume": True, "worker": worker, **more.pop("config", {})}
    return bench.zygote.start(bench.task([bench.build(store, **fields)], **more))


def finish(bench: Bench, pids: list[int]) -> list[Run]:
    runs = [bench.zygote.wait(pid) for pid in pids]
    for run in runs:
        bench.check(run)
    return runs


def together(bench: Bench, store: Path, count: int, **more: Any) -> list[Run]:
    """Runs all workers of a build at the same time."""
    return finish(bench, [start(bench, store, f"{k}/{count}", **more) for k in range(count)])


def digest(bench: Bench, store: Path) -> Any:
    run = bench.run([("digest", str(store)), ("verify", str(store))])
    assert run.values[1] == [], run
    return run.values[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_make_the_store_of_one_build(short: Bench, store: Path, count: int) -> None:
    runs = together(short, store, count)
    assert [run.kind for run in runs] == ["done"] * count, runs
    assert sum(run.values[0]["built"] for run in runs) >= SAMPLES
    assert {run.values[0]["bad"] for run in runs} == {1}
    assert digest(short, store) == short.golden


def test_a_worker_that_joins_late_has_nothing_to_do(short: Bench, store: Path) -> None:
    together(short, store, 1)
    [run] = together(short, store, 1)
    assert run.values[0]["built"] == 0
    assert digest(short, store) == short.golden


def test_a_builder_alone_continues_what_workers_left(short: Bench, store: Path) -> None:
    [run] = together(short, store, 1, fault={**SECOND, "action": "kill"})
    assert run.kind == "killed", run
    COUNTS["SIGKILL worker"] += 1
    assert list((store / COMMITS).iterdir())
    assert short.run([short.build(store, resume=True)]).kind == "done"
    assert digest(short, store) == short.golden


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
    step = 1 if NIGHTLY else 7
    for n in range(1, 60, step):
        shutil.rmtree(store, ignore_errors=True)
        first = start(short, store, "0/2", fault={"n": n, "action": "kill"})
        second = start(short, store, "1/2")
        killed, done = finish(short, [first, second])
        COUNTS["SIGKILL worker"] += killed.kind == "killed"
        assert done.kind == "done", (n, done)
        assert digest(short, store) == short.golden, n


def test_workers_are_killed_at_random(short: Bench, store: Path) -> None:
    chance = random.Random(4)
    for round_ in range(ROUNDS):
        shutil.rmtree(store, ignore_errors=True)
        running = {k: start(short, store, f"{k}/3") for k in range(3)}
        for _ in range(chance.randrange(1, 5)):
            time.sleep(chance.uniform(0, 0.4))
            k = chance.randrange(3)
            end(running[k])
            [run] = finish(short, [running[k]])
            COUNTS["SIGKILL worker"] += run.kind == "killed"
            running[k] = start(short, store, f"{k}/3")
        runs = finish(short, list(running.values()))
        assert [run.kind for run in runs] == ["done"] * 3, (round_, runs)
        assert digest(short, store) == short.golden, round_


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_one_worker_after_its_chunk(short: Bench, store: Path, name: str) -> None:
    number = getattr(signal, name)
    first = start(short, store, "0/2", fault={**SECOND, "action": name})
    second = start(short, store, "1/2")
    stopped, done = finish(short, [first, second])
    if stopped.kind == "error":  # else the others were faster
        assert stopped.type == "InterruptedBuildError", stopped
        assert stopped.exit_code == 128 + number
        assert "continue with --resume" in stopped.message
    assert stopped.fired == 1
    assert done.kind == "done", done
    assert digest(short, store) == short.golden


def test_everybody_else_is_kept_out_while_workers_build(short: Bench, store: Path) -> None:
    pid = start(short, store, "0/1", fault={**SECOND, "action": "SIGSTOP"})
    deadline = time.monotonic() + 60
    while not (store / COMMITS).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    host = os.uname().nodename
    run = short.run([short.build(store, resume=True)])
    assert run.type == "StoreLockedError", run
    assert f"process {pid} on {host}" in run.message
    os.kill(pid, signal.SIGCONT)
    [run] = finish(short, [pid])
    assert run.kind == "done"
    assert lock_holders(store / LOCK) == []
    assert digest(short, store) == short.golden


def test_a_worker_does_not_join_a_build_by_one_process(short: Bench, store: Path) -> None:
    task = short.task([short.build(store, resume=True)], fault={"n": 60, "action": "SIGSTOP"})
    pid = short.zygote.start(task)
    deadline = time.monotonic() + 60
    while not (store / "zarr.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    [run] = together(short, store, 1)
    assert run.type == "StoreLockedError", run
    assert f"process {pid}" in run.message
    os.kill(pid, signal.SIGCONT)
    [run] = finish(short, [pid])
    assert run.kind == "done"
    assert digest(short, store) == short.golden


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"seed": 5}, "seed"), ({"views": 12}, "views"), ({"batch_sizes": {"clip_text": 8}}, "batch")],
)
def test_a_worker_with_other_settings_is_refused(
    short: Bench, store: Path, changes: dict[str, Any], field: str
) -> None:
    pid = start(short, store, "0/2", fault={**SECOND, "action": "SIGSTOP"})
    deadline = time.monotonic() + 60
    while not (store / COMMITS).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    other = start(short, store, "1/2", config=changes)
    [run] = finish(short, [other])
    assert run.exit_code == 2, run
    assert field in run.message
    os.kill(pid, signal.SIGCONT)
    [run] = finish(short, [pid])
    assert run.kind == "done", run
    assert digest(short, store) == short.golden


def test_a_refused_worker_leaves_no_store_behind(short: Bench, store: Path) -> None:
    [run] = together(short, store, 1, config={"models": {"clip_text": "/none"}, "device": "cuda:7"})
    assert run.exit_code == 2, run
    assert not store.exists()


def test_features_are_added_by_workers(bench: Bench, grown: Path, store: Path) -> None:
    shutil.copytree(grown / "one", store)
    runs = together(bench, store, 2, config={"features": ["clip_text", "blip2_text"]})
    assert [run.kind for run in runs] == ["done", "done"], runs
    assert digest(bench, store) == bench.value(("digest", str(grown / "two")))


def test_views_are_added_by_workers(bench: Bench, grown: Path, store: Path) -> None:
    shutil.copytree(grown / "two", store)
    runs = together(bench, store, 3, config={"views": 16})
    assert [run.kind for run in runs] == ["done"] * 3, runs
    assert FeatureStore(store).spec.views == 16
    run = bench.run([("verify", str(store))])
    assert run.values[0] == []


def test_samples_are_added_by_workers(bench: Bench, grown: Path, store: Path) -> None:
    shutil.copytree(grown / "two", store)
    more = {"data_dir": str(grown / "more"), "append": True}
    runs = together(bench, store, 2, config=more)
    assert [run.kind for run in runs] == ["done"] * 2, runs
    assert digest(bench, store) == bench.value(("digest", str(grown / "fourteen")))


def test_changed_inputs_are_rebuilt_by_workers(bench: Bench, store: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(bench.data, data)
    assert bench.run([bench.build(store, data_dir=str(data))]).kind == "done"
    changed = sorted(data.glob("*.json"))[6]
    changed.write_text(json.dumps({"plot": "another plot altogether"}))
    whole = tmp_path / "whole"
    assert bench.run([bench.build(whole, data_dir=str(data))]).kind == "done"
    config = {"data_dir": str(data), "remake_changed": True}
    runs = together(bench, store, 2, config=config)
    assert [run.kind for run in runs] == ["done"] * 2, runs
    assert sum(run.values[0]["built"] for run in runs) in (bench.chunk, 2 * bench.chunk)
    assert digest(bench, store) == digest(bench, whole)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_workers_need_no_file_locks(short: Bench, store: Path, number: int) -> None:
    runs = together(short, store, 3, flock=errno.errorcode[number])
    assert [run.kind for run in runs] == ["done"] * 3, runs
    assert digest(short, store) == short.golden


def test_a_build_without_file_locks_is_refused_and_names_workers(short: Bench, store: Path) -> None:
    run = short.run([short.build(store, resume=True)], flock="ENOLCK")
    assert run.type == "StorageError", run
    assert "--worker 0/1" in run.message
    [run] = together(short, store, 1, flock="ENOLCK")
    assert run.kind == "done"
    assert digest(short, store) == short.golden


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_a_failed_operation_of_one_worker_loses_nothing(
    short: Bench, store: Path, action: str
) -> None:
    step = 1 if NIGHTLY else 11
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
