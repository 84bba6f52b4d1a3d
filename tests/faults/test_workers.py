"""Several workers of one build: real processes that create a store, join it and add to it.

Whatever they do, the store ends as the store of a build by one process. ``test_worker_kills.py``
kills and stops them, ``test_worker_conflicts.py`` lets them disagree.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.commits import COMMITS
from featurestore.storage.store import FeatureStore
from featurestore.system.locks import lock_holders
from tests.faults.harness import COUNTS, SAMPLES, Bench
from tests.faults.workers import SECOND, digest, finish, is_stopped, start, stop, together, until

LOCK = "records/runs/lock"


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


def test_everybody_else_is_kept_out_while_workers_build(short: Bench, store: Path) -> None:
    pid = stop(short, store, "0/1", SECOND)
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
    fault = {"n": 1, "only": ["rename"], "action": "SIGSTOP"}
    pid = short.zygote.start(short.task([short.build(store, resume=True)], fault=fault))
    until(lambda: is_stopped(pid))
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
    pid = stop(short, store, "0/2", SECOND)
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


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, pytest.param(errno.EOPNOTSUPP, marks=pytest.mark.nightly)]
)
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
