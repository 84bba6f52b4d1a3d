"""The progress of a store: committed chunks, rate, and the process that writes to it.

This module only reads, and inspects the store's lock without taking it. It does not disturb a
build in this process, in another one, or on another machine that shares the file system.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featurestore.errors import ManyViewsError
from featurestore.records import Modality
from featurestore.storage import extension
from featurestore.storage.creation import state_of
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import EXTENSION, LOCK, RUNS, FeatureStore
from featurestore.system.locks import UNKNOWN, Holder, Unknown, lock_holder
from manyviews.operations.watch.runs import Run, newest_run, utc_now

# Without file locks, a watch ends after this many seconds without a change.
STILL_S = 60.0
_LOCK = {Holder: "held", Unknown: "unknown"}


@dataclass(frozen=True, slots=True)
class Part:
    """The committed part of a store, or of an extension of it.

    Attributes:
        samples: total number of samples.
        views: number of views per sample.
        dims: dimension of each feature.
        done: number of committed samples.
        chunks: total number of chunks.
        committed: number of committed chunks.
        bad: number of bad inputs of the committed samples, by modality and reason.
        fingerprint: the settings that affect the numbers of the store.
        absent: number of committed samples without an input that a feature uses, by modality.
    """

    samples: int
    views: int
    dims: Mapping[str, int]
    done: int
    chunks: int
    committed: int
    bad: Mapping[str, int]
    fingerprint: Mapping[str, str | int]
    absent: Mapping[Modality, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: FeatureStore) -> Part:
        """Counts the committed part of an open store."""
        bad = Counter(f"{b.modality} {b.reason}" for b in store.bad_inputs)
        spec = store.spec
        return cls(
            spec.samples,
            spec.views,
            dict(spec.dims),
            len(store.records),
            spec.chunks,
            len(store.ledger),
            dict(bad.most_common()),
            store.fingerprint,
            store.absent,
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return self.committed == self.chunks


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot of a store's progress.

    Attributes:
        path: the store's folder.
        store: the committed part of the store.
        addition: the committed part of the extension that is being added to it, or None.
        holder: the process that holds the lock; None if no process does, ``UNKNOWN`` if the file
            system has no locks.
        run: the newest build, or None without a readable log.
        samples_per_s: rate of the newest build; 0 if not known.
        eta_s: seconds to the end of a running build; None if not known.
        is_still: without file locks, whether nothing has changed for so long that a watch ends.
    """

    path: Path
    store: Part
    addition: Part | None
    holder: Holder | Unknown | None
    run: Run | None
    samples_per_s: float
    eta_s: float | None
    is_still: bool = False

    @property
    def part(self) -> Part:
        """The part that is being built: the extension, or else the store."""
        return self.addition or self.store

    @property
    def running(self) -> bool:
        """Whether a build is running and has logged its start."""
        return self._is_holders

    @property
    def is_starting(self) -> bool:
        """Whether the holder of the lock has logged no start: a build that loads, or a repair."""
        if not isinstance(self.holder, Holder):
            return False
        return self.run is None or self.run.pid != self.holder.pid

    @property
    def ended(self) -> str:
        """The final state: ``complete``, or how the last build ended; ``""`` while a build runs.

        Without file locks, a complete store and a log with an end count as ended; anything else
        becomes ``unknown`` after ``STILL_S`` seconds without a change.
        """
        if isinstance(self.holder, Holder):
            return ""
        if self.store.complete and self.addition is None:
            return "complete"
        if self.holder is UNKNOWN and (self.run is None or not self.run.end):
            return "unknown" if self.is_still else ""
        if self.run is None or self.run.end == "finished":
            return "not complete"
        return self.run.end or "killed"

    @property
    def _is_holders(self) -> bool:
        """Whether the newest log is that of the process that holds the lock."""
        return (
            isinstance(self.holder, Holder)
            and self.run is not None
            and self.run.pid == self.holder.pid
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
            "holder": self.holder if isinstance(self.holder, Holder) else None,
            "lock": "free" if self.holder is None else _LOCK[type(self.holder)],
            "running": self.running,
            "ended": self.ended,
            "samples_per_s": round(self.samples_per_s, 3),
            "views_per_s": round(self.samples_per_s * self.part.views, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "slower_side": None if run is None else run.bottleneck,
            "last_run": None if run is None else {"pid": run.pid, "end": run.end, "why": run.why},
            "addition": None if self.addition is None else _addition_facts(self.addition),
            "fingerprint": dict(store.fingerprint),
        }


def _addition_facts(part: Part) -> dict[str, Any]:
    return {
        "samples": part.samples,
        "views": part.views,
        "dims": dict(part.dims),
        "done": part.done,
        "chunks": part.chunks,
        "committed": part.committed,
    }


class Looker:
    """Takes snapshots of one store, and reads its ledger only after a change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Path, tuple[object, Part]] = {}

    def look(self) -> Progress:
        """Takes a snapshot.

        Raises:
            InputError: there is no store.
            CorruptStoreError: the store's records are damaged.
        """
        # Read the holder first: then all chunks that it committed before it exited are seen below.
        holder = lock_holder(self._path / LOCK)
        addition = None
        if extension.is_unfinished(self._path):
            addition = self._part(self._path / EXTENSION)
        store = self._part(self._path)
        run = newest_run(self._path / RUNS)
        plain = Progress(self._path, store, addition, holder, run, 0.0, None)
        if run is None:
            return plain
        now = utc_now()
        if not plain.running:
            return Progress(self._path, store, addition, holder, run, run.samples_per_s(), None)
        left = plain.part.samples - plain.part.done
        rate, eta_s = run.samples_per_s(now), run.eta_s(left, now)
        return Progress(self._path, store, addition, holder, run, rate, eta_s)

    def _part(self, path: Path) -> Part:
        key = tuple(_stat(path / name) for name in ("zarr.json", Ledger.FILE))
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, Part.of(FeatureStore(path)))
        return known[1]


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


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
            if not isinstance(lock_holder(path / LOCK), Holder):
                progress = looker.look()
            else:
                time.sleep(every_s)
                continue
        if progress.holder is UNKNOWN:
            state = (progress.store.committed, progress.addition, _run_state(progress.run))
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
        is_locked = isinstance(lock_holder(path / LOCK), Holder)
        if is_locked != reported:
            waiting(is_locked)
        reported = is_locked
        time.sleep(every_s)


def _run_state(run: Run | None) -> tuple[int, int] | None:
    """The parts of a run that change while its log grows."""
    return None if run is None else (run.pid, run.built)
