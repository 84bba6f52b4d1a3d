"""The progress of a store: committed chunks, rate, and the process that writes to it.

This module only reads, and inspects the store's lock without taking it. It does not disturb a
build in this process, in another one, or on another machine that shares the file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from featurestore.errors import ManyViewsError
from featurestore.storage import extension
from featurestore.storage.commits import COMMITS
from featurestore.storage.creation import state_of
from featurestore.storage.files import LocalFiles
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import EXTENSION, LOCK, RUNS, FeatureStore
from featurestore.system.locks import UNKNOWN, Holder, Unknown, lock_holders
from manyviews.operations.watch.part import Part
from manyviews.operations.watch.runs import Run, RunLogs, utc_now
from manyviews.operations.watch.workers import (
    Worker,
    find_workers,
    last_word,
    slower_side,
    time_left_s,
    total_rate,
)

# Without file locks, a watch ends after this many seconds without a change.
STILL_S = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a store's progress.

    Attributes:
        path: the store's folder.
        store: the committed part of the store.
        addition: the committed part of the extension that is being added to it, or None.
        holders: the processes that hold the lock, several workers or one other process; empty if
            it is free, ``UNKNOWN`` if the file system has no locks.
        run: the newest build by one process, or of several workers the one whose end explains
            most; None without a readable log.
        workers: the workers that build it, or built it last; empty for a build by one process.
        time: the time of the snapshot.
        is_still: without file locks, whether nothing has changed for so long that a watch ends.
    """

    path: Path
    store: Part
    addition: Part | None
    holders: Sequence[Holder] | Unknown
    run: Run | None
    workers: Sequence[Worker]
    time: datetime
    is_still: bool = False

    @property
    def part(self) -> Part:
        """The part that is being built: the extension, or else the store."""
        return self.addition or self.store

    @property
    def is_held(self) -> bool:
        """Whether a process is known to hold the lock."""
        return not isinstance(self.holders, Unknown) and bool(self.holders)

    @property
    def running(self) -> bool:
        """Whether a build is running and has logged its start."""
        if self.workers:
            return any(worker.state == "running" for worker in self.workers)
        return self._is_holders

    @property
    def is_starting(self) -> bool:
        """Whether no holder of the lock has logged a start: a build that loads, or a repair."""
        if self.workers:
            states = {worker.state for worker in self.workers}
            return "starting" in states and states.isdisjoint({"running", "silent"})
        if isinstance(self.holders, Unknown) or not self.holders:
            return False
        return self.run is None or self.run.pid != self.holders[0].pid

    @property
    def samples_per_s(self) -> float:
        """Rate of the running workers together, or of the newest build; 0 if not known."""
        if self.workers:
            return total_rate(self.workers, self.time)
        if self.run is None:
            return 0.0
        return self.run.samples_per_s(self.time if self.running else None)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of a running build; None if not known."""
        left = self.part.samples - self.part.done
        if self.workers:
            return time_left_s(self.workers, left, self.time)
        return self.run.eta_s(left, self.time) if self.run and self.running else None

    @property
    def slower_side(self) -> str | None:
        """``producers``, ``backbones`` or ``unknown``; None without a readable log."""
        if self.workers:
            return slower_side(self.workers)
        return None if self.run is None else self.run.bottleneck

    @property
    def ended(self) -> str:
        """The final state: ``complete``, or how the last build ended; ``""`` while a build runs.

        Without file locks, a complete store and a log with an end count as ended; anything else
        becomes ``unknown`` after ``STILL_S`` seconds without a change.
        """
        if self.is_held:
            return ""
        if self.store.complete and self.addition is None:
            return "complete"
        if self.holders is UNKNOWN and self._may_run:
            return "unknown" if self.is_still else ""
        if self.run is None or self.run.end == "finished":
            return "not complete"
        return self.run.end or "killed"

    @property
    def _may_run(self) -> bool:
        """Without file locks, whether a build may be running according to its log."""
        if self.workers:
            return any(worker.run is not None and not worker.run.end for worker in self.workers)
        return self.run is None or not self.run.end

    @property
    def _is_holders(self) -> bool:
        """Whether the newest log is that of the process that holds the lock."""
        return (
            not isinstance(self.holders, Unknown)
            and bool(self.holders)
            and self.run is not None
            and self.run.pid == self.holders[0].pid
            and not self.run.end
        )

    def facts(self) -> dict[str, Any]:
        """The snapshot as plain values for ``--json``."""
        store, run = self.store, self.run
        return {
            "samples": store.samples,
            "views": store.views,
            "dims": dict(store.dims),
            "done": store.done,
            "chunks": store.chunks,
            "committed": store.committed,
            "complete": store.complete,
            "bad": sum(store.bad.values()),
            "bad_by_reason": dict(store.bad),
            "absent": dict(store.absent),
            "sealed": store.sealed,
            "holders": [] if isinstance(self.holders, Unknown) else [*dict.fromkeys(self.holders)],
            "lock": _lock(self.holders),
            "running": self.running,
            "ended": self.ended,
            "samples_per_s": round(self.samples_per_s, 3),
            "views_per_s": round(self.samples_per_s * self.part.views, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "slower_side": self.slower_side,
            "workers": [worker.facts(self.time) for worker in self.workers],
            "last_run": None if run is None else {"pid": run.pid, "end": run.end, "why": run.why},
            "addition": None if self.addition is None else self.addition.facts(),
            "fingerprint": dict(store.fingerprint),
        }


def _lock(holders: Sequence[Holder] | Unknown) -> str:
    if isinstance(holders, Unknown):
        return "unknown"
    return "held" if holders else "free"


class Looker:
    """Takes snapshots of one store, and reads its ledger only after a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Path, tuple[object, Part]] = {}
        self._logs = RunLogs(path / RUNS)

    def look(self) -> Progress:
        """Takes a snapshot.

        Raises:
            InputError: there is no store.
            CorruptStoreError: the store's records are damaged.
        """
        # Read the holders first: all chunks that they committed before they exited are seen below.
        holders = lock_holders(self._path / LOCK)
        addition = None
        if extension.is_unfinished(self._path):
            addition = self._part(self._path / EXTENSION)
        store = self._part(self._path)
        runs, now = self._logs.read(), utc_now()
        workers = find_workers(runs, holders, now)
        last = last_word(workers)
        run = runs[-1] if runs else None
        return Progress(
            self._path,
            store,
            addition,
            holders,
            run if last is None or last.run is None else last.run,
            workers,
            now,
        )

    def _part(self, path: Path) -> Part:
        files = LocalFiles(path)
        # Two records may be created within one tick of the clock that gives a folder its time.
        key = (files.stamp("zarr.json"), files.stamp(Ledger.FILE), files.names(COMMITS))
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, Part.of(FeatureStore(path)))
        return known[1]


def watch(
    path: Path,
    every_s: float = 1.0,
    still_s: float = STILL_S,
    waiting: Callable[[bool], None] = lambda _: None,
) -> Iterator[Progress]:
    """Takes snapshots of a store until it is complete or no process writes to it.

    Args:
        path: the store's folder.
        every_s: seconds between two snapshots.
        still_s: without file locks, seconds without a change after which the watch ends.
        waiting: called if there is no store yet, and again after each change of its argument:
            whether a process holds the lock of the unfinished store.

    Yields:
        A snapshot every ``every_s`` seconds; ``ended`` of the last one is not empty.

    Raises:
        InputError: the folder is not a store.
        CorruptStoreError: the store's records are damaged.
    """
    _wait(path, every_s, waiting)
    looker = Looker(path)
    last, since = None, time.monotonic()
    while True:
        try:
            progress = looker.look()
        except ManyViewsError:
            # A store that is being created, or whose extension is being moved into place, may be
            # absent for an instant.
            if not _is_held(path):
                progress = looker.look()
            else:
                time.sleep(every_s)
                continue
        if progress.holders is UNKNOWN:
            state = (progress.store.committed, progress.addition, _run_state(progress))
            if state != last:
                last, since = state, time.monotonic()
            progress = replace(progress, is_still=time.monotonic() - since >= still_s)
        yield progress
        if progress.ended:
            return
        time.sleep(every_s)


def _wait(path: Path, every_s: float, waiting: Callable[[bool], None]) -> None:
    """Waits until there is a store; see :func:`watch`.

    A new build locks an empty folder after its models are loaded. Where a build was killed before,
    it takes the lock first, so that it can be seen while it loads them.
    """
    reported = None
    while state_of(path) != "store":
        is_locked = _is_held(path)
        if is_locked != reported:
            waiting(is_locked)
        reported = is_locked
        time.sleep(every_s)


def _is_held(path: Path) -> bool:
    holders = lock_holders(path / LOCK)
    return not isinstance(holders, Unknown) and bool(holders)


def _run_state(progress: Progress) -> list[tuple[int, int, str]]:
    """The parts of the runs that change while their logs grow."""
    runs = [worker.run for worker in progress.workers] or [progress.run]
    return [(run.pid, run.built, run.end) for run in runs if run is not None]
