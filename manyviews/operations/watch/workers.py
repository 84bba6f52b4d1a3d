"""The workers that build a store together: what each of them does, or how it ended.

The lock names the processes that hold it, and each of them keeps a log. Names of processes that
have ended on another host stay in the lock's file while others hold it: such a worker is recognized
by its log, to which nothing is added any more.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from featurestore.system.locks import Holder, Unknown, WorkerHolder
from manyviews.operations.watch.runs import Run

State = Literal["starting", "running", "silent", "finished", "interrupted", "failed", "killed"]

# A worker on another host is silent if its log does not grow for this many seconds, or for this
# many times the time of a chunk; before its first chunk, producers start and models warm up.
_SILENT_S = 60.0
_SILENT_CHUNKS = 3.0
_FIRST_CHUNK_S = 600.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a build.

    Attributes:
        pid: its process id.
        host: the name of its machine.
        state: ``starting`` while it loads its models, ``running``; ``silent`` if it is on another
            host, or the file system has no locks, and its log does not grow; else how it ended:
            ``finished``, ``interrupted``, ``failed``, or ``killed`` without logging an end.
        run: its log; None while it is starting.
    """

    pid: int
    host: str
    state: State
    run: Run | None

    @property
    def share(self) -> str:
        """Which of the workers it is, ``K/N``; empty while it is starting."""
        return "" if self.run is None else str(self.run.started.get("worker") or "")

    def samples_per_s(self, now: datetime) -> float:
        """Its rate in samples per second: now if it is running, else over its whole run."""
        if self.run is None:
            return 0.0
        return self.run.samples_per_s(now if self.state == "running" else None)

    def facts(self, now: datetime) -> dict[str, Any]:
        """Plain values for ``--json``."""
        run = self.run
        return {
            "worker": self.share or None,
            "host": self.host,
            "pid": self.pid,
            "device": None if run is None else run.started.get("device"),
            "state": self.state,
            "why": "" if run is None else run.why,
            "built": 0 if run is None else run.built,
            "samples_per_s": round(self.samples_per_s(now), 3),
            "slower_side": None if run is None else run.bottleneck,
            "silent_s": None if run is None else round(run.silent_s(now), 1),
        }


def find_workers(
    runs: Sequence[Run], holders: Sequence[Holder] | Unknown, now: datetime
) -> list[Worker]:
    """The workers that build a store, or built it last, in the order of their shares.

    Listed are all that have not ended, and the newest run of each share of the newest build.

    Args:
        runs: the logs of the store's builds, from old to new.
        holders: the holders of its lock.
        now: the current time.

    Returns:
        Nothing if the newest build is not one by workers, or another process holds the lock.
    """
    named = [] if isinstance(holders, Unknown) else list(holders)
    if not all(isinstance(holder, WorkerHolder) for holder in named):
        return []  # a build by one process, or a repair
    starting = [holder for holder in named if holder.pid is not None]
    if not (starting or (runs and runs[-1].started.get("worker"))):
        return []
    workers: dict[tuple[str, int], Worker] = {}
    newest: dict[str, Worker] = {}
    for run in runs:
        if not run.started.get("worker"):
            newest.clear()  # a build by one process came after them
            continue
        worker = Worker(run.pid, run.host, _state(run, holders, now), run)
        if worker.state in ("running", "silent"):
            workers[worker.host, worker.pid] = worker
        newest[worker.share] = worker
    count = next(reversed(newest)).partition("/")[2] if newest else ""
    for worker in newest.values():
        if worker.share.partition("/")[2] == count:
            workers.setdefault((worker.host, worker.pid), worker)
    for pid, host in starting:
        if (str(host), int(pid or 0)) not in _logged(runs):
            workers[str(host), int(pid or 0)] = Worker(int(pid or 0), str(host), "starting", None)
    return sorted(workers.values(), key=_place)


def _place(worker: Worker) -> tuple[bool, int, str, int]:
    return (not worker.share, int(worker.share.partition("/")[0] or 0), worker.host, worker.pid)


def _logged(runs: Iterable[Run]) -> set[tuple[str, int]]:
    return {(run.host, run.pid) for run in runs if not run.end}


def _state(run: Run, holders: Sequence[Holder] | Unknown, now: datetime) -> State:
    if run.end:
        return run.end  # type: ignore[return-value]
    if not isinstance(holders, Unknown):
        if (run.pid, run.host) not in [(holder.pid, holder.host) for holder in holders]:
            return "killed"
        if run.host == socket.gethostname():
            return "running"
    chunk_s = run.chunk_s()
    patience_s = max(_SILENT_S, _SILENT_CHUNKS * chunk_s) if chunk_s else _FIRST_CHUNK_S
    return "running" if run.silent_s(now) <= patience_s else "silent"


def total_rate(workers: Iterable[Worker], now: datetime) -> float:
    """Samples per second of the running workers together; of all if none is running."""
    workers = list(workers)
    running = [worker for worker in workers if worker.state == "running"]
    return sum(worker.samples_per_s(now) for worker in running or workers)


def time_left_s(workers: Iterable[Worker], left: int, now: datetime) -> float | None:
    """Seconds until ``left`` more samples are committed; None if that is not known."""
    running = [w for w in workers if w.state == "running" and w.run is not None]
    rate = sum(worker.samples_per_s(now) for worker in running)
    if not rate:
        return None
    # What each of them has computed since its last commit is not committed yet.
    ahead = sum(w.samples_per_s(now) * w.run.since_chunk_s(now) for w in running if w.run)
    return max(0.0, (left - ahead) / rate)


def slower_side(workers: Iterable[Worker]) -> str:
    """The side that is the slower one of most running workers."""
    sides = Counter(
        worker.run.bottleneck for worker in workers if worker.run and worker.state == "running"
    )
    del sides["unknown"]
    return max(sides, key=lambda side: sides[side]) if sides else "unknown"


def last_word(workers: Sequence[Worker]) -> Worker | None:
    """The worker whose end explains most why an incomplete store is not built any more."""
    for state in ("failed", "killed", "silent", "interrupted"):
        for worker in workers:
            if worker.state == state:
                return worker
    return workers[-1] if workers else None
