"""Seals a store whose workers have ended, if none of them could do so."""

from __future__ import annotations

import time
from pathlib import Path

from consumers.resume.extension import Extension
from featurestore.errors import StoreLockedError
from featurestore.storage import extension
from featurestore.storage.store import EXTENSION, FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.system.locks import FileLock

# Time that killed workers may take to end, and between two attempts to lock the store, in seconds.
_END_S = 20.0
_LOOK_S = 0.2


def seal(path: Path) -> None:
    """Turns the records of a store into its ledger, and puts a complete extension in place.

    Does nothing if other workers still build the store: the last one of them seals it.

    Raises:
        ManyViewsError: the store is damaged or cannot be written.
    """
    lock = _lock_alone(path)
    if lock is None:
        return
    try:
        if extension.is_pending(path):
            extension.put_in_place(path)
        stored = FeatureStore(path)
        StoreWriter.of(stored, lock).finish()
        if extension.is_unfinished(path):
            made = StoreWriter.of(FeatureStore(path / EXTENSION), lock)
            if made.complete:
                Extension(_kind(stored, made), stored, made).finish(made)
    finally:
        lock.release()


def _kind(stored: FeatureStore, made: FeatureStore) -> str:
    """What an extension adds."""
    if not set(stored.features) & set(made.features):
        return "features"
    return "views" if made.spec.views > stored.spec.views else "samples"


def _lock_alone(path: Path) -> FileLock | None:
    deadline = time.monotonic() + _END_S
    while True:
        try:
            return take_lock(path, worker=True)
        except StoreLockedError:
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_S)
