"""How far a store is: what is committed, how fast, and who writes to it. Reads only.

The store's lock is looked at and never held. Nothing here disturbs a build, in this process or in
another, on this machine or on one that shares the file system.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurestore.errors import ManyViewsError
from featurestore.storage import extension
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import EXTENSION, LOCK, RUNS, FeatureStore
from featurestore.storage.writer import state_of
from featurestore.system.locks import UNKNOWN, Holder, Unknown, lock_holder
from manyviews.operations.watch.runs import Run, newest_run, utc_now

# Where nobody can tell whether a build is at it: how long to watch a store that does not change. A
# chunk of a slow build takes minutes.
STILL_S = 60.0
_LOCK = {Holder: "held", Unknown: "unknown"}


@dataclass(frozen=True, slots=True)
class Part:
    """How much of a store, or of an addition to it, is committed.

    Attributes:
        samples: samples in all.
        views: views per sample.
        dims: length of each feature.
        done: samples that are committed.
        chunks: chunks in all.
        committed: chunks that are committed.
        bad: bad inputs of the committed samples, by modality and reason.
        fingerprint: everything that changes its numbers.
    """

    samples: int
    views: int
    dims: Mapping[str, int]
    done: int
    chunks: int
    committed: int
    bad: Mapping[str, int]
    fingerprint: Mapping[str, str | int]

    @classmethod
    def of(cls, store: FeatureStore) -> Part:
        """Reads it off an open store."""
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
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return self.committed == self.chunks


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at a store.

    Attributes:
        path: its folder.
        store: what is committed.
        addition: what is committed of what is being added to it, or None.
        holder: the process that holds its lock; None where nobody does, ``UNKNOWN`` where the file
            system has no locks, so that nobody can tell.
        run: its newest build, or None where no log says anything.
        samples_per_s: of that build; 0 where nothing is known.
        eta_s: seconds to its end while it runs; None where nothing is known.
        is_still: whether nothing has changed for so long that a watch ends, where nobody can tell
            whether somebody writes to it.
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
        """What is being made."""
        return self.addition or self.store

    @property
    def running(self) -> bool:
        """Whether a build that has begun to make samples is at it."""
        return self._is_holders

    @property
    def ended(self) -> str:
        """How it ended: ``complete``, or how the last build left it; ``""`` while one is at it.

        Where nobody can tell whether one is, a complete store and a log that says its end have
        ended; others have after a while in which nothing changes, ``unknown``.
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
        """The look as plain values."""
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
    """Looks at one store again and again, and reads its ledger only where it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Path, tuple[object, Part]] = {}

    def look(self) -> Progress:
        """Looks once.

        Raises:
            InputError: there is no store.
            CorruptStoreError: its records are damaged.
        """
        # The holder first: what it has committed before it ended is then seen below.
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
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def watch(
    path: Path,
    every_s: float = 1.0,
    still_s: float = STILL_S,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[Progress]:
    """Looks at a store until it is complete or nobody writes to it any more.

    Args:
        path: the store.
        every_s: seconds between two looks.
        still_s: how long nothing must have changed to end, where nobody can tell who writes.
        waiting: called once where there is no store yet, before a build is waited for.

    Yields:
        A look each ``every_s`` seconds; of the last one, ``ended`` says how it ended.

    Raises:
        InputError: there is something else than a store.
        CorruptStoreError: its records are damaged.
    """
    if state_of(path) != "store":
        waiting()
        while state_of(path) != "store":
            time.sleep(every_s)
    looker = Looker(path)
    last, since = None, time.monotonic()
    while True:
        try:
            found = looker.look()
        except ManyViewsError:
            # A store that is being made, or to which an addition is put in place, may for an
            # instant not be there.
            if not isinstance(lock_holder(path / LOCK), Holder):
                found = looker.look()
            else:
                time.sleep(every_s)
                continue
        if found.holder is UNKNOWN:
            state = (found.store.committed, found.addition, _run_state(found.run))
            if state != last:
                last, since = state, time.monotonic()
            found = replace(found, is_still=time.monotonic() - since >= still_s)
        yield found
        if found.ended:
            return
        time.sleep(every_s)


def _run_state(run: Run | None) -> tuple[int, int] | None:
    """What changes as a build's log grows."""
    return None if run is None else (run.pid, run.built)
