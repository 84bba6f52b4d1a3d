"""Workers that disagree: other numbers, devices, weights, versions, commands; and their disks.

A worker that does not fit is refused, and the others build the store without it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from featurestore.verify.store import verify
from tests.faults.harness import COUNTS, SAMPLES, Bench
from tests.faults.workers import (
    CHUNKS,
    FIRST,
    SECOND,
    digest,
    finish,
    recorded,
    start,
    stop,
    together,
    until,
)


def wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def test_one_chunk_twice_with_equal_bytes(short: Bench, store: Path) -> None:
    """Two workers with the same number build the same chunks; the second result is not written."""
    pids = [stop(short, store, "0/1", FIRST), stop(short, store, "0/1", FIRST)]
    assert recorded(store) == []
    for pid in pids:
        wake(pid)
    runs = finish(short, pids)
    assert [run.kind for run in runs] == ["done", "done"], runs
    COUNTS["chunk twice"] += 1
    assert digest(short, store) == short.golden


def test_one_chunk_twice_with_other_bytes(short: Bench, store: Path) -> None:
    """A machine that computes wrong numbers overwrites a chunk just before it is committed."""
    honest = stop(short, store, "0/1", FIRST)
    wrong = stop(short, store, "0/1", FIRST, offset=1.0)
    wake(honest)
    until(lambda: 0 in recorded(store) or (store / "records/ledger.jsonl").stat().st_size > 0)
    wake(wrong)
    done, refused = finish(short, [honest, wrong])
    COUNTS["chunk twice"] += 1
    assert done.kind == "done", done
    assert (refused.type, refused.exit_code) == ("ChunkConflictError", 1), refused
    assert "Chunk 0 was made twice with different bytes" in refused.message
    [sealed] = together(short, store, 1)
    assert sealed.values[0]["built"] == 0, sealed
    assert {finding.chunk for finding in verify(store).findings} == {0}
    assert short.value(("repair", str(store))) == [0]
    [again] = together(short, store, 1)
    assert (again.kind, again.values[0]["built"]) == ("done", short.chunk), again
    assert digest(short, store) == short.golden


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"device_kind": "NVIDIA H100"}, "device_kind"),
        ({"versions": {"torch": "9.9.9"}}, "version.torch"),
        ({"config": {"models": {"clip_text": "other"}}}, "clip_text.weights_sha256"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_of_another_machine_is_refused(
    short: Bench, store: Path, changes: dict[str, Any], field: str
) -> None:
    """While another one builds, and when the store is complete."""
    pid = stop(short, store, "0/2", SECOND)
    [refused] = finish(short, [start(short, store, "1/2", **_copied(changes))])
    COUNTS["worker of another machine"] += 1
    assert (refused.type, refused.exit_code) == ("StoreMismatchError", 2), refused
    assert f"another {field}." in refused.message, refused
    wake(pid)
    [done] = finish(short, [pid])
    assert done.kind == "done", done
    assert digest(short, store) == short.golden


def _copied(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(v) if isinstance(v, dict) else v for name, v in changes.items()}


def test_another_version_that_is_allowed_builds_no_chunk_again(short: Bench, store: Path) -> None:
    """Its chunks record other versions, so that a chunk built twice would have other bytes."""
    slow = stop(short, store, "0/2", SECOND)
    config = {"allow_version_change": True}
    other = start(short, store, "1/2", versions={"torch": "9.9.9"}, config=config)
    until(lambda: len(recorded(store)) == CHUNKS - 2)
    time.sleep(3)  # long enough for a worker of the same version to build both again
    assert recorded(store) == [0, 3, 4, 5]
    wake(slow)
    runs = finish(short, [slow, other])
    assert [run.kind for run in runs] == ["done", "done"], runs
    assert sum(run.values[0]["built"] for run in runs) >= SAMPLES, runs
    lines = map(json.loads, (store / "records/ledger.jsonl").read_bytes().splitlines())
    changed = {line["chunk"]: line.get("changed") for line in lines}
    assert [changed[chunk] for chunk in (0, 1, 2)] == [None] * 3
    assert all("version.torch" in changed[chunk] for chunk in (3, 4, 5)), changed
    assert verify(store).findings == []


@pytest.mark.parametrize("command", ["build", "overwrite", "verify --repair"])
def test_commands_that_need_the_store_alone(short: Bench, store: Path, command: str) -> None:
    """Refused with the processes and hosts of the workers, which are unharmed."""
    pids = [stop(short, store, f"{k}/2", SECOND, host=f"node{k}") for k in range(2)]
    steps = {
        "build": short.build(store, resume=True),
        "overwrite": short.build(store, overwrite=True),
        "verify --repair": ("repair", str(store)),
    }
    refused = short.run([steps[command]])
    COUNTS["exclusive command"] += 1
    assert (refused.type, refused.exit_code) == ("StoreLockedError", 1), refused
    for k, pid in enumerate(pids):
        assert f"process {pid} on node{k}" in refused.message, refused
    for pid in pids:
        wake(pid)
    runs = finish(short, pids)
    assert [run.kind for run in runs] == ["done", "done"], runs
    assert digest(short, store) == short.golden


@pytest.mark.parametrize("error", ["EPERM", "EEXIST"])
def test_links_that_fail(short: Bench, store: Path, error: str) -> None:
    """No hard links, or a link whose answer is lost, so that the system repeats the request."""
    runs = together(short, store, 3, link=error)
    assert [run.kind for run in runs] == ["done"] * 3, runs
    COUNTS[f"link {error}"] += 1
    assert digest(short, store) == short.golden


def test_links_and_locks_are_both_missing(short: Bench, store: Path) -> None:
    runs = together(short, store, 2, link="EOPNOTSUPP", flock="ENOLCK")
    assert [run.kind for run in runs] == ["done"] * 2, runs
    COUNTS["link EOPNOTSUPP"] += 1
    assert digest(short, store) == short.golden


def test_a_worker_that_is_refused_after_the_end(short: Bench, store: Path) -> None:
    """A complete store is compared too: a wrong worker never reports success."""
    shutil.copytree(short.golden_store, store)
    [refused] = together(short, store, 1, device_kind="NVIDIA H100")
    COUNTS["worker of another machine"] += 1
    assert (refused.type, refused.exit_code) == ("StoreMismatchError", 2), refused
    assert digest(short, store) == short.golden
