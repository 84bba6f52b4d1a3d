"""The store that a build would write to, examined without taking its lock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consumers.config import BuildConfig
from consumers.resume.completion import completed
from consumers.resume.extension import Extension, find_extension
from featurestore.errors import ManyViewsError
from featurestore.records import Sample
from featurestore.storage import creation
from featurestore.storage.shape import StoreSpec
from featurestore.storage.soundness import require_place, require_sound
from featurestore.storage.space import missing_bytes, nearest_existing, store_bytes
from featurestore.storage.store import LOCK, FeatureStore
from featurestore.system.locks import Unknown, WorkerHolder, lock_holders, require_locks
from featurestore.wording import amount
from manyviews.operations.check.findings import Group
from producers.sources.scan import Scan


@dataclass(frozen=True, slots=True)
class Target:
    """The path of the store, and what exists there.

    Attributes:
        group: the findings about it.
        stored: the store to continue, or None for a new one.
        wanted: the extension that would be added to it, or None.
        parent: the nearest writable folder above it, or None.
        freed_bytes: bytes that a build would delete before it starts.
    """

    group: Group
    stored: FeatureStore | None = None
    wanted: Extension | None = None
    parent: Path | None = None
    freed_bytes: int = 0

    @classmethod
    def none(cls) -> Target:
        """The target of a check for which no store was named."""
        return cls(Group("store"))

    @property
    def _built(self) -> FeatureStore | None:
        """The store that the build writes chunks to: the store itself, or its extension's."""
        return self.stored if self.wanted is None else self.wanted.made

    def missing_bytes(
        self, spec: StoreSpec, samples: Sequence[Sample], remade: Sequence[int]
    ) -> int:
        """Bytes that are still to be written."""
        built = self._built
        if built is None:
            return store_bytes(spec, samples)
        done = set(built.ledger.committed) - set(remade)
        return missing_bytes(spec, samples, built.path, done)

    def todo(self, samples: int) -> int:
        """Number of samples that are still to be built, out of ``samples``."""
        built, wanted = self._built, self.wanted
        left = samples if built is None else samples - len(built.records)
        if wanted is None or self.stored is None or wanted.kind != "samples":
            return left
        taken = self.stored.spec.samples // self.stored.spec.chunk * self.stored.spec.chunk
        return min(left, samples - taken)


def open_target(config: BuildConfig, scanned: Scan) -> Target:
    """Examines ``config.store`` as ``build --resume`` would."""
    group = Group("store", {"store": str(config.store), "state": "unusable"})
    parent = _parent(config.store)
    try:
        state = creation.state_of(config.store)
        group.facts["state"] = state
        if state != "store" or config.overwrite:
            _new(group, config, state)
            freed = 0 if state == "absent" else creation.erasable_bytes(config.store)
            require_place(config.store)
            return Target(group, None, None, parent, freed)
        stored = FeatureStore(config.store)
        wanted = find_extension(completed(config, stored, scanned), stored, scanned)
    except ManyViewsError as error:
        group.failure("store", error)
        return Target(group, None, None, parent)
    group.facts |= {
        "samples": stored.spec.samples,
        "views": stored.spec.views,
        "features": list(stored.features),
        "done": len(stored.records),
        "complete": stored.complete,
        "extension": None if wanted is None else wanted.kind,
    }
    _stored(group, stored, wanted)
    if not (stored.complete and wanted is None):
        try:
            require_sound(stored)
            require_locks(stored.path)
        except ManyViewsError as error:
            group.failure("store", error)
    return Target(group, stored, wanted, parent)


def _new(group: Group, config: BuildConfig, state: str) -> None:
    if state == "store":
        advice = "Leave --overwrite out to continue it."
        group.warn("store", f"{config.store} would be deleted and rebuilt", advice)
    else:
        group.ok("store", f"{config.store} would be new")


def _stored(group: Group, stored: FeatureStore, wanted: Extension | None) -> None:
    done, samples = len(stored.records), stored.spec.samples
    if wanted is not None:
        group.ok("store", f"{stored.path} would get more {wanted.kind}")
    elif stored.complete:
        group.ok("store", f"{stored.path} is complete: there is nothing to build")
    else:
        group.ok(
            "store", f"{stored.path} would be resumed: {done:,} of {amount(samples, 'sample')} done"
        )
    holders = lock_holders(stored.path / LOCK)
    if isinstance(holders, Unknown) or not holders:
        return
    names = [f"process {h.pid} on {h.host}" for h in dict.fromkeys(holders)]
    verb = "is" if len(names) == 1 else "are"
    advice = "A second build is refused. `status --watch` shows the first."
    if all(isinstance(holder, WorkerHolder) for holder in holders):
        advice = "Only more workers may build it now. `status --watch` shows these."
    group.warn("lock", f"{', '.join(names)} {verb} writing to it", advice)


def _parent(store: Path) -> Path | None:
    """The nearest existing folder above the store, or None if it is not writable."""
    folder = nearest_existing(store.absolute().parent)
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else None
