"""One of several workers of a build: it creates the store or joins it, and builds its share.

The first worker to lock the store alone creates it, or prepares what only one process may change:
it starts an extension, or drops the chunks that are to be rebuilt. Then it shares the lock. The
others wait for that, and share it too. The last one to release it seals the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from consumers.build import load_ahead, open_store, open_writer, plan_build
from consumers.config import BuildConfig
from consumers.plan import Loaded, Plan
from consumers.resume.checks import check_intent
from featurestore.errors import StorageError, StoreLockedError
from featurestore.storage import creation
from featurestore.storage.ledger import Ledger
from featurestore.storage.soundness import require_place
from featurestore.storage.store import EXTENSION, LOCK, FeatureStore, is_store
from featurestore.storage.writer import SharedWriter, open_alone, take_lock
from featurestore.system.locks import FileLock, WorkerHolder, lock_holders
from featurestore.system.refusals import status_of
from producers.sources.scan import Scan

if TYPE_CHECKING:
    from consumers.build_report import BuildReport

# Time between two attempts to lock the store, in seconds.
_LOOK_S = 0.2
# Attempts to read who holds the lock: its holder writes its name after it has taken the lock.
_LOOKS = 10


def build_share(config: BuildConfig, found: Scan, notify: Callable[..., None]) -> BuildReport:
    """Builds the share ``config.worker`` of a store, see :func:`consumers.build.build`.

    Args:
        config: the configuration.
        found: the samples of the collection.
        notify: callback that receives an event's name and, as keywords, its facts.
    """
    state = creation.state_of(config.store)
    check_intent(config, state)
    if state != "store":
        require_place(config.store, needs_locks=False)
    # The state of the store in which a plan needed the lock alone.
    before: _State | None = None
    loaded: Loaded = {}
    has_tried = False

    def prepare() -> None:
        """Loads the models while another worker loads its own and creates the store."""
        nonlocal has_tried
        if not has_tried and creation.state_of(config.store) != "store":
            has_tried = True
            load_ahead(config, found, loaded)

    while True:
        with ExitStack() as stack:
            lock = _enter(config.store, notify, prepare, before)
            stack.callback(lock.release)
            if state == "absent" and not lock.is_shared:
                stack.push(partial(_leave_nothing, config.store))
            notices = [] if lock.is_shared or before else _recovered(config, lock, notify)
            has_store = creation.state_of(config.store) == "store"
            stored = open_store(config) if has_store else None
            plan, more = plan_build(config, found, stored, notify, loaded)
            if lock.is_shared and _needs_lock_alone(plan):
                before = _state(config.store)
                continue
            writer = _shared_writer(plan, lock, notify)
            writer.notices += notices + more
            from consumers.main_loop import run_plan

            return run_plan(plan, writer, notify, share=config.worker)


def _leave_nothing(path: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Removes the lock of a store that was not created, because the build was refused."""
    if kind is not None and creation.state_of(path) == "unfinished":
        with suppress(StorageError):
            creation.discard_lock(path)


# Inode, size and modification time of the files that a change by one worker alone replaces.
_State = tuple[tuple[int, int, int] | None, ...]


def _state(path: Path) -> _State:
    """What differs as soon as a worker has made a change for which it held the lock alone."""
    files = (path / "zarr.json", path / Ledger.FILE, path / EXTENSION / "zarr.json")
    found = [status_of(file) for file in files]
    return tuple(s and (s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def _needs_lock_alone(plan: Plan) -> bool:
    """Whether the build begins with a change that no other worker may be beside."""
    decided = plan.decided
    starts = decided.wanted is not None and decided.wanted.made is None
    return decided.stored is None or bool(decided.remade) or starts


def _enter(
    path: Path,
    notify: Callable[..., None],
    prepare: Callable[[], None],
    before: _State | None,
) -> FileLock:
    """Locks a store: alone if no other process is there, else beside other workers.

    Waits while another worker creates the store. With ``before``, the state of a store that this
    worker has to change, waits until all others have ended, or one of them has changed it.
    ``prepare`` is called meanwhile.

    Raises:
        StoreLockedError: a process that is not a worker holds the lock.
    """
    looks = 0
    while True:
        try:
            return take_lock(path, worker=True)
        except StoreLockedError as e:
            locked = e
        may_join = before is None or _state(path) != before
        if may_join and (lock := _beside_others(path)) is not None:
            return lock
        holders = lock_holders(path / LOCK)
        are_workers = isinstance(holders, list) and all(
            isinstance(holder, WorkerHolder) for holder in holders
        )
        looks = 0 if are_workers else looks + 1
        if looks > _LOOKS:
            raise locked
        notify("waiting", alone=before is not None)
        prepare()
        time.sleep(_LOOK_S)


def _beside_others(path: Path) -> FileLock | None:
    """A shared lock of an existing store; None if a process holds the lock alone."""
    try:
        lock = take_lock(path, worker=True, shared=True)
    except StoreLockedError:
        return None
    if is_store(path):
        return lock
    lock.release()  # its creator was killed, or was about to begin
    return None


def _recovered(config: BuildConfig, lock: FileLock, notify: Callable[..., None]) -> list[str]:
    """Repairs an existing store after killed workers, then lets other workers in.

    Returns:
        Notices about what was repaired.
    """
    if creation.state_of(config.store) != "store":
        return []
    stored, extended = open_alone(config.store, lock)
    _share(lock, notify)
    return stored.notices + ([] if extended is None else extended.notices)


def _shared_writer(plan: Plan, lock: FileLock, notify: Callable[..., None]) -> SharedWriter:
    """The writer of a worker, after the changes for which it needs the lock alone."""
    decided = plan.decided
    path = decided.config.store if decided.wanted is None else decided.config.store / EXTENSION
    notices: list[str] = []
    if not lock.is_shared and _needs_lock_alone(plan):
        if not lock.exists and decided.stored is not None:
            raise StorageError(
                decided.config.store,
                "its file system has no file locks, without which workers only build new stores",
                "Add to it, or rebuild changed inputs, on another file system.",
            )
        notices = open_writer(plan, decided.stored, lock).notices
    if not lock.is_shared:
        _share(lock, notify)
    writer = SharedWriter.of(FeatureStore(path), lock)
    writer.notices += notices
    return writer


def _share(lock: FileLock, notify: Callable[..., None]) -> None:
    """Lets other workers in; waits if one of them took the lock in that instant."""
    while True:
        try:
            lock.share()
        except StoreLockedError:
            notify("waiting", alone=False)
            time.sleep(_LOOK_S)
        else:
            return
