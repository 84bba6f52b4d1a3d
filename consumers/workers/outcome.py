"""How far a store is while workers build it, and what its parent process does at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from consumers.build_report import BuildReport, absent_in
from consumers.resume.extension import Extension
from consumers.stopping import before_anything, interrupted
from featurestore.errors import (
    ConfigError,
    InterruptedBuildError,
    ManyViewsError,
    StoreLockedError,
    WorkerError,
)
from featurestore.storage import extension
from featurestore.storage.soundness import require_sound
from featurestore.storage.store import EXTENSION, FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.system.locks import FileLock
from featurestore.wording import first_line

# Time between two attempts to lock the store, in seconds.
_LOOK_S = 0.2


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
            return _sealed(self._path, lock)

    def _lock_alone(self, timeout_s: float) -> FileLock | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return take_lock(self._path, worker=True)
            except StoreLockedError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_LOOK_S)

    def describe(self, report: BuildReport, store: FeatureStore) -> None:
        """Adds the bad inputs of the store, and the absent ones, to a report."""
        report.bad, report.absent = store.bad_inputs, absent_in(store)

    def interrupted(self, number: int) -> InterruptedBuildError:
        """The error for a build that a stop signal ended."""
        self.look()
        if self._store is None:
            return before_anything(number)
        return interrupted(number, FeatureStore(self._store.path))


def first_failure(errors: Sequence[tuple[str, Exception]]) -> Exception:
    """The error of a build whose workers have ended without completing the store.

    Args:
        errors: the errors that ended workers, each with the label of its worker.

    Returns:
        The first one, with notes about the others. A worker that was refused, so that others could
        go ahead, comes after those that failed.
    """
    refused = [each for each in errors if getattr(each[1], "exit_code", 1) == ConfigError.exit_code]
    failed = [each for each in errors if each not in refused] or refused
    if not failed:
        return WorkerError("All workers have ended, and the store is not complete.")
    label, error = failed[0]
    for other, its_error in errors:
        if other != label and str(its_error) != str(error):
            error.add_note(f"{other}: {first_line(its_error)}")
    return error


def _sealed(path: Path, lock: FileLock) -> FeatureStore:
    """Seals the complete store at ``path``, and puts its complete extension in place."""
    if extension.is_pending(path):
        extension.put_in_place(path)
    stored = FeatureStore(path)
    require_sound(stored)
    writer: FeatureStore = StoreWriter.of(stored, lock)
    if extension.is_unfinished(path):
        extended = FeatureStore(path / EXTENSION)
        require_sound(extended)
        made = StoreWriter.of(extended, lock)
        writer = Extension.of(stored, made).finish(made)
    return writer
