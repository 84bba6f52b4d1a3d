"""What the workers of a build have reported, how far its store is, and how the build ends.

This is common to the processes that start workers and watch them: the parent of ``--devices`` and
the driver of ``--ray``.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers.build_report import BuildReport, absent_in
from consumers.resume.extension import Extension
from consumers.stopping import Notifier, before_anything, interrupted
from featurestore.errors import (
    ConfigError,
    InterruptedBuildError,
    ManyViewsError,
    StoreLockedError,
    WorkerError,
)
from featurestore.storage import extension
from featurestore.storage.store import EXTENSION, FeatureStore
from featurestore.storage.writer import open_alone, take_lock
from featurestore.system.locks import FileLock
from featurestore.wording import first_line

# Time between two attempts to lock the store, in seconds.
_LOCK_S = 0.2
# Time between two looks at the store, in seconds, if nothing is reported.
_LOOK_S = 2.0
# Events of a worker that are reported as events of the build, once.
_ONCE = ("scanned", "chosen", "started")


class Outcome:
    """The state of the store that several workers build, or of its extension.

    The store is looked at without a lock, only after a worker has started to build: before, it may
    be complete, and about to be extended.

    Attributes:
        is_complete: whether all chunks were committed at the last look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: FeatureStore | None = None
        self._committed: set[int] = set()
        self.is_complete = False

    def look(self) -> dict[str, int]:
        """Looks at the store.

        Returns:
            ``samples`` of the store, and those that are ``done``: in committed chunks.
        """
        # What cannot be read now, because a worker puts an extension in place or seals the store,
        # can be read later.
        with suppress(ManyViewsError):
            is_extended = extension.is_unfinished(self._path)
            place = self._path / EXTENSION if is_extended else self._path
            if self._store is None or self._store.path != place:
                self._store = FeatureStore(place)
            # A worker may have recorded its last chunks and sealed the store since the last look.
            self._store.ledger.refresh()
            self._committed = set(self._store.ledger.committed)
            self.is_complete = len(self._committed) == self._store.spec.chunks
        if self._store is None:
            return {"samples": 0, "done": 0}
        spec = self._store.spec
        done = sum(len(spec.samples_of(chunk)) for chunk in self._committed)
        return {"samples": spec.samples, "done": done}

    def settled(self, timeout_s: float = 0.0) -> FeatureStore | None:
        """Seals the store if it is complete and no worker has; puts an extension in place.

        Args:
            timeout_s: how long killed workers may take to release the lock, in seconds.

        Returns:
            The store; None if it is not complete.
        """
        self.look()
        if not self.is_complete:
            return None
        lock = self._lock_alone(timeout_s)
        if lock is None:
            # Workers of other machines, the last of which seals it.
            return FeatureStore(self._path)
        with ExitStack() as stack:
            stack.callback(lock.release)
            store, extended = open_alone(self._path, lock)
            return store if extended is None else Extension.of(store, extended).finish(extended)

    def _lock_alone(self, timeout_s: float) -> FileLock | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return take_lock(self._path, worker=True)
            except StoreLockedError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_LOCK_S)

    def interrupted(self, number: int) -> InterruptedBuildError:
        """The error for a build that a stop signal ended."""
        self.look()
        if self._store is None:
            return before_anything(number)
        return interrupted(number, FeatureStore(self._store.path))


@dataclass(slots=True)
class Tally:
    """What one worker process has reported; the counts begin anew with each process.

    Attributes:
        waited_s: time in which the backbones waited for producers, in seconds.
        truncated: number of texts that were cut, by feature.
        replaced: number of producers that were replaced, by cause.
    """

    waited_s: float = 0.0
    truncated: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)

    def read(self, facts: Mapping[str, Any]) -> None:
        """Reads the facts of an event ``chunk``, or of a report."""
        self.waited_s = facts["waited_s"]
        self.truncated, self.replaced = Counter(facts["truncated"]), Counter(facts["replaced"])


class Reports:
    """What the workers of a build have reported; passes it on, and knows the build's result.

    Workers are numbered from 0; each may have several processes, one after the other.

    Args:
        path: the store.
        notify: callback that receives the events of the build, see ``display``.
        is_only: whether no other process starts workers of this build.
    """

    def __init__(self, path: Path, notify: Notifier, *, is_only: bool = True) -> None:
        self.outcome = Outcome(path)
        self._notify = notify
        self._is_only = is_only
        self._labels: Sequence[str] = ()
        self._errors: list[tuple[int, Exception]] = []
        self._restarted: Counter[str] = Counter()
        self._tallies: dict[tuple[int, int], Tally] = {}
        self._once: set[str] = set()
        self._has_started = False
        self._chunks: dict[int, int] = {}
        self._times: list[float] = []
        # Samples of the store that were done when the first worker started to build.
        self._done = sys.maxsize
        self._looked_s = self._incomplete_s = time.monotonic()

    def name(self, labels: Sequence[str]) -> None:
        """Names the workers, for people."""
        self._labels = labels
        self._notify("workers", labels=list(labels))

    def event(self, worker: int, process: int, event: str, facts: Mapping[str, Any]) -> None:
        """Passes an event of a worker on: for all workers once, and for its own line."""
        if event in _ONCE and event not in self._once:
            self._once.add(event)
            self._notify(event, **facts)
        if event == "started":
            self._has_started = True
            self._times.append(time.monotonic())
            self._done = min(self._done, facts["done"])
        elif event == "chunk":
            self.look(at_once=True)
            self._times.append(time.monotonic())
            self._read(worker, process, facts)
            if facts["chunk"] not in self._chunks:
                self._chunks[facts["chunk"]] = facts["samples"]
                self._notify("chunk", **{**facts, "built": sum(self._chunks.values())})
        self._tell(worker, event, facts)

    def finished(self, worker: int, process: int, facts: Mapping[str, Any]) -> None:
        """Notes the report of a worker, with which its process ends."""
        self._has_started = True
        self._read(worker, process, facts)

    def restarted(self, worker: int, cause: str) -> None:
        """Notes that a worker was started again, and why its last process ended."""
        self._restarted[cause] += 1
        self._tell(worker, "restarted", {"cause": cause})

    def failed(self, worker: int, error: Exception) -> None:
        """Notes the error that ended a worker for good."""
        self._errors.append((worker, error))
        if not isinstance(error, InterruptedBuildError):
            self._tell(worker, "ended", {"error": str(error)})

    def _read(self, worker: int, process: int, facts: Mapping[str, Any]) -> None:
        self._tallies.setdefault((worker, process), Tally()).read(facts)

    def _tell(self, worker: int, event: str, facts: Mapping[str, Any]) -> None:
        label = self._labels[worker]
        self._notify("worker", place=worker, label=label, what=event, facts=facts)

    def look(self, *, at_once: bool = False) -> None:
        """Looks at the store if it is time to, or ``at_once``."""
        now = time.monotonic()
        if self._has_started and (at_once or now - self._looked_s >= _LOOK_S):
            self._looked_s = now
            self._notify("committed", **self.outcome.look())
        if not self.outcome.is_complete:
            self._incomplete_s = now

    @property
    def complete_s(self) -> float:
        """The time since the store was seen to be complete, in seconds; 0 if it is not."""
        return time.monotonic() - self._incomplete_s if self.outcome.is_complete else 0.0

    def result(self, stopped: Sequence[int], timeout_s: float = 0.0) -> BuildReport:
        """Settles the store when all workers have ended, and reports the end of the build.

        Args:
            stopped: the stop signals that were received.
            timeout_s: see :meth:`Outcome.settled`.

        Raises:
            ManyViewsError: the store is not complete: the error of a worker, or of a stop signal.
        """
        # Before a worker has started to build, the store is as it was, maybe complete.
        store = self.outcome.settled(timeout_s) if self._has_started else None
        if store is None:
            raise self.outcome.interrupted(stopped[0]) if stopped else self._failure()
        report = BuildReport(store.path, store.spec.samples, store.spec.views)
        report.built = sum(self._chunks.values())
        if self._restarted and self._is_only and self._times:
            # A killed worker may have committed a chunk without reporting it.
            report.built = report.samples - self._done
        last = max(self._times) if self._chunks else time.monotonic()
        report.seconds = last - min(self._times, default=last)
        for tally in self._tallies.values():
            report.waited_s += tally.waited_s / len(self._labels)
            report.truncated += tally.truncated
            report.replaced += tally.replaced
        report.restarted = self._restarted
        report.bad, report.absent = store.bad_inputs, absent_in(store)
        self._notify("finished", **report.facts())
        return report

    def _failure(self) -> Exception:
        """The error of a build whose workers have ended without completing the store.

        It is the first one, with a note about one of another kind. A worker that was refused, so
        that others could build, comes after those that failed.
        """
        errors = [error for _, error in self._errors]
        failed = [error for error in errors if not _is_refusal(error)] or errors
        if not failed:
            return WorkerError("All workers have ended, and the store is not complete.")
        for worker, other in self._errors:
            if type(other) is not type(failed[0]):
                failed[0].add_note(f"{self._labels[worker]}: {first_line(other)}")
                break
        return failed[0]


def _is_refusal(error: Exception) -> bool:
    """Whether a worker refused to build, so that others may complete the store."""
    return isinstance(error, ManyViewsError) and error.exit_code == ConfigError.exit_code
