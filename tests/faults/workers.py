"""Common code of the tests with several workers: real processes on one store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featurestore.storage.commits import COMMITS
from tests.faults.harness import Bench, Run

# The moment before the first or second record of a worker is created. At the second, its first
# chunk is committed.
FIRST = {"n": 1, "only": ["link"]}
SECOND = {"n": 2, "only": ["link"]}
# The moment before a worker tries to lock a store for the third time: it could neither lock it
# alone nor share the lock, and has waited.
WAITED = {"n": 3, "only": ["open"]}
CHUNKS = 6
_DEADLINE_S = 120.0


def start(bench: Bench, store: Path, worker: str, **more: Any) -> int:
    """Starts a worker; returns its process id."""
    fields = {"resume": True, "worker": worker, **more.pop("config", {})}
    return bench.zygote.start(bench.task([bench.build(store, **fields)], **more))


def finish(bench: Bench, pids: list[int]) -> list[Run]:
    """Waits for workers."""
    runs = [bench.zygote.wait(pid) for pid in pids]
    for run in runs:
        bench.check(run)
    return runs


def together(bench: Bench, store: Path, count: int, **more: Any) -> list[Run]:
    """Runs all workers of a build at the same time."""
    return finish(bench, [start(bench, store, f"{k}/{count}", **more) for k in range(count)])


def digest(bench: Bench, store: Path) -> Any:
    """The digest of a store that `verify` finds intact."""
    run = bench.run([("digest", str(store)), ("verify", str(store))])
    assert run.values[1] == [], run
    return run.values[0]


def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop(bench: Bench, store: Path, worker: str, fault: dict[str, Any], **more: Any) -> int:
    """Starts a worker that stops (SIGSTOP) at an operation, and waits until it does."""
    pid = start(bench, store, worker, fault={"action": "SIGSTOP", **fault}, **more)
    until(lambda: is_stopped(pid))
    return pid


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped; fails if it has ended."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state not in "ZX", f"process {pid} has ended"
    return state == "T"


def recorded(store: Path) -> list[int]:
    """The chunks that have a record, read without the project's code."""
    if not (store / COMMITS).is_dir():
        return []
    return sorted(int(p.name) for p in (store / COMMITS).iterdir() if p.name.isdigit())


def erased(store: Path, template: Path | None = None) -> None:
    """Deletes a store, or replaces it by a copy of another one."""
    shutil.rmtree(store, ignore_errors=True)
    if template is not None:
        shutil.copytree(template, store)
