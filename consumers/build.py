"""Put source, plan, main loop and store together: a build.

Importing this module does not load torch, so that a mistake in the options or the data folder is
refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from consumers.config import BuildConfig
from consumers.plan import Plan, decide, make_plan
from consumers.resume.checks import check_intent
from consumers.resume.extension import Extension, completed, find_extension, naming_extension
from featurestore.errors import (
    InputError,
    InterruptedBuildError,
    StorageError,
)
from featurestore.storage import extension
from featurestore.storage import writer as stores
from featurestore.storage.codecs import NONE
from featurestore.storage.soundness import require_place, require_sound
from featurestore.storage.space import free_bytes, missing_bytes, require_space, store_bytes
from featurestore.storage.store import EXTENSION, RECORDS, FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.system.durable import make_folder
from featurestore.system.locks import FileLock
from featurestore.system.refusals import is_folder
from producers.sources.source import Scan, scan

if TYPE_CHECKING:
    from consumers.main_loop import BuildReport

# Called with an event's name and its facts; see ``progress`` for those that listen.
Observer = Callable[[str, Mapping[str, Any]], None]


def build(config: BuildConfig, observers: Sequence[Observer] = ()) -> BuildReport:
    """Makes the store that ``config`` asks for, or goes on with it.

    Args:
        config: what to build.
        observers: told of everything that happens.

    Returns:
        The report, when every chunk is committed.

    Raises:
        InputError: the data folder or what is at ``config.store`` does not fit.
        ConfigError: an option, a model or the machine does not fit.
        StoreMismatchError: ``resume`` would change numbers that are already there.
        StoreLockedError: another process is writing to the store.
        InterruptedBuildError: a signal ended it after a committed chunk.
        BadInputsError: an input cannot be used, and ``bad_sample`` is ``fail``.
        BackboneError, ProducerError, StorageError: it failed; what is committed stays.
    """

    def tell(event: str, **facts: Any) -> None:
        for observer in observers:
            observer(event, facts)

    try:
        return _build(config, tell)
    except BaseException as e:
        if isinstance(e, StorageError):
            e.add_promise()
        stopped = isinstance(e, (InterruptedBuildError, KeyboardInterrupt))
        tell("interrupted" if stopped else "failed", error=str(e) or type(e).__name__)
        raise


def _build(config: BuildConfig, tell: Callable[..., None]) -> BuildReport:
    found = scan(config.data_dir, follow_links=config.follow_links)
    tell("scanned", **_scan_facts(found))
    state = stores.state_of(config.store)
    check_intent(config, state)
    if not (state == "store" and config.resume):
        require_place(config.store)
    with ExitStack() as stack:
        lock = _lock(config, stack) if state != "absent" else None
        stored = _open(config) if state == "store" and config.resume else None
        config = completed(config, stored)
        wanted = find_extension(config, stored, found)
        _require_sound(stored, wanted)
        plan = make_plan(decide(config, found, stored, wanted), tell)
        notices = _require_space(plan, stored)
        if lock is None:
            lock = _lock(config, stack)
            _refuse_late(config)
        from consumers.main_loop import run_plan

        writer = _writer(plan, stored, lock)
        writer.notices += notices
        return run_plan(plan, writer, tell)


def _open(config: BuildConfig) -> FeatureStore:
    """The store to go on with; an extension that is complete is put in place first."""
    if extension.is_pending(config.store):
        extension.put_in_place(config.store)
    return FeatureStore(config.store)


def _require_sound(stored: FeatureStore | None, wanted: Extension | None) -> None:
    """Refuses what cannot be built on, before the models are loaded."""
    if stored is not None:
        require_sound(stored)
    if wanted is not None and wanted.made is not None:
        with naming_extension():
            require_sound(wanted.made)


def _require_space(plan: Plan, stored: FeatureStore | None) -> list[str]:
    """Refuses a build that there is no room for.

    Returns:
        What there is to say where chunks are compressed, so that nobody knows what they will take.
    """
    path, samples = plan.config.store, plan.found.samples
    made = stored if plan.wanted is None else plan.wanted.made
    freed = 0
    if made is not None:
        done = set(made.ledger.committed) - set(plan.remade)
        needed = missing_bytes(plan.spec, samples, made.path, done)
    else:
        needed = store_bytes(plan.spec, samples)
        if stored is None and is_folder(path):
            freed = stores.erasable_bytes(path)
    if plan.spec.codec == NONE:
        require_space(path, needed, freed)
        return []
    free = free_bytes(path)
    if free is None or needed <= free + freed:
        return []
    return [f"{path} takes {needed:,} bytes before compression, and {free + freed:,} are free"]


def _writer(plan: Plan, stored: FeatureStore | None, lock: FileLock) -> StoreWriter:
    """The store that rows are written to: new, gone on with, or the extension of one."""
    path, samples = plan.config.store, plan.found.samples
    if stored is None:
        return stores.create(path, plan.spec, plan.fingerprint, samples, lock)
    writer = StoreWriter.of(stored, lock)
    if plan.remade:
        writer.ledger.drop(plan.remade)
    if plan.wanted is None:
        return writer
    if plan.wanted.made is not None:
        with naming_extension():
            return StoreWriter.of(plan.wanted.made, lock)
    make_folder(path / EXTENSION / RECORDS)
    # What was allowed to differ is told by the chunks: of those that are there it is not true.
    kept = {name: stored.fingerprint[name] for name in plan.changed if name in stored.fingerprint}
    return stores.create(path / EXTENSION, plan.spec, plan.fingerprint | kept, samples, lock)


def _lock(config: BuildConfig, stack: ExitStack) -> FileLock:
    lock = stores.take_lock(config.store)
    stack.callback(lock.release)
    return lock


def _refuse_late(config: BuildConfig) -> None:
    """Refuses a store that appeared while the backbones were loaded, unlocked for want of one."""
    if stores.state_of(config.store) == "store":
        raise InputError(
            f"Another process made {config.store} meanwhile; nothing was changed.\n"
            "Go on with it with --resume, or choose another --store."
        )


def _scan_facts(found: Scan) -> dict[str, Any]:
    return {
        "samples": len(found.samples),
        "unmatched_images": list(found.unmatched_images),
        "unmatched_texts": list(found.unmatched_texts),
        "left_out": [list(pair) for pair in found.left_out],
        "alike": [list(names) for names in found.alike],
    }
