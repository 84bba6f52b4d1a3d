"""Build a store: scan the data folder, plan, and run the main loop.

Importing this module does not load torch, so that a mistake in the options or the data folder is
refused at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from consumers.choices import choices, downloads
from consumers.config import BuildConfig
from consumers.decisions import decide
from consumers.plan import Loaded, Plan, load_all, make_plan
from consumers.resume.checks import check_intent
from consumers.resume.completion import completed
from consumers.resume.extension import Extension, find_extension
from consumers.stopping import before_anything
from featurestore.errors import (
    InputError,
    InterruptedBuildError,
    ManyViewsError,
    StorageError,
)
from featurestore.storage import creation, extension
from featurestore.storage import writer as stores
from featurestore.storage.codecs import NONE
from featurestore.storage.soundness import require_place, require_sound
from featurestore.storage.space import free_bytes, missing_bytes, require_space, store_bytes
from featurestore.storage.store import EXTENSION, RECORDS, FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.system.durable import make_folder
from featurestore.system.locks import FileLock
from featurestore.system.platforms import require_linux
from featurestore.system.refusals import is_folder
from featurestore.wording import human_bytes
from producers.sources.collection import GENERIC
from producers.sources.kinds import scan_collection
from producers.sources.scan import Scan

if TYPE_CHECKING:
    from consumers.build_report import BuildReport

# Callback that receives an event's name and facts; ``progress`` has those of the command line.
Observer = Callable[[str, Mapping[str, Any]], None]


def build(config: BuildConfig, observers: Sequence[Observer] = ()) -> BuildReport:
    """Creates the store that ``config`` describes, or continues an existing one.

    Args:
        config: the configuration of the build.
        observers: callbacks that receive each event of the build.

    Returns:
        The report, when every chunk is committed.

    Raises:
        InputError: the data folder cannot be used, or ``config.store`` is in the way.
        ConfigError: an option, a model or the machine does not suit the build.
        StoreMismatchError: ``resume`` would change features that are already stored.
        StoreLockedError: another process is writing to the store.
        InterruptedBuildError: a stop signal ended the build after a committed chunk, or Ctrl-C
            before the first one was started.
        BadInputsError: an input cannot be used, and ``bad_sample`` is ``fail``.
        BackboneError, ProducerError, StorageError: the build failed; committed chunks are kept.
    """
    require_linux("A build")
    has_started = False

    def notify(event: str, **facts: Any) -> None:
        nonlocal has_started
        has_started |= event == "started"
        for observer in observers:
            observer(event, facts)

    try:
        return _build(config, notify)
    except BaseException as e:
        if isinstance(e, StorageError):
            e.add_promise()
        stopped = isinstance(e, (InterruptedBuildError, KeyboardInterrupt))
        notify("interrupted" if stopped else "failed", error=str(e) or type(e).__name__)
        if isinstance(e, KeyboardInterrupt) and not has_started and _can_run_again(config):
            raise before_anything(signal.SIGINT) from None
        raise


def _can_run_again(config: BuildConfig) -> bool:
    """Whether the same command is accepted again: a new store may exist already, but be empty."""
    return config.resume or config.overwrite or creation.state_of(config.store) != "store"


def _build(config: BuildConfig, notify: Callable[..., None]) -> BuildReport:
    if config.devices:
        from consumers.workers.parent import build_on_devices

        return build_on_devices(config, notify)
    if config.ray is not None:
        from consumers.workers.on_ray.driver import build_on_ray

        return build_on_ray(config, notify)
    found = scan_collection(config.inputs)
    notify("scanned", **_scan_facts(found))
    if config.worker is not None:
        from consumers.workers.worker import build_share

        return build_share(config, found, notify)
    state = creation.state_of(config.store)
    check_intent(config, state)
    if not (state == "store" and config.resume):
        require_place(config.store)
    with ExitStack() as stack:
        lock = _lock(config, stack) if state != "absent" else None
        stored = open_store(config) if state == "store" and config.resume else None
        plan, notices = plan_build(config, found, stored, notify)
        if lock is None:
            lock = _lock(config, stack)
            _refuse_late(config)
        from consumers.main_loop import run_plan

        writer = open_writer(plan, stored, lock)
        writer.notices += notices
        return run_plan(plan, writer, notify)


def load_ahead(config: BuildConfig, found: Scan, loaded: Loaded) -> None:
    """Loads the models of a store that another process is about to create, into ``loaded``.

    What is wrong with the build is raised when it is planned.
    """
    with suppress(ManyViewsError):
        load_all(decide(completed(config, None, found), found, None, None), None, loaded)


def plan_build(
    config: BuildConfig,
    found: Scan,
    stored: FeatureStore | None,
    notify: Callable[..., None],
    loaded: Loaded | None = None,
) -> tuple[Plan, list[str]]:
    """Decides everything about a build that can start, and loads its models; writes nothing.

    Args:
        config: the configuration.
        found: the samples of the collection.
        stored: the store to continue, or None for a new one.
        notify: callback that receives an event's name and, as keywords, its facts.
        loaded: backbones that need not be loaded again, see :func:`make_plan`.

    Returns:
        The plan, and notices for its start.
    """
    complete = completed(config, stored, found)
    wanted = find_extension(complete, stored, found)
    _require_sound(stored, wanted)
    chosen = found.collection.preset == GENERIC and stored is None
    if chosen:
        notify("chosen", **choices(complete, found), downloads=downloads(complete))
    plan = make_plan(decide(complete, found, stored, wanted), notify, loaded_before=loaded)
    notices = _require_space(plan, stored)
    if chosen:
        size = human_bytes(store_bytes(plan.spec, found.samples))
        notices.append(f"the store takes {size}")
    return plan, notices


def open_store(config: BuildConfig) -> FeatureStore:
    """Opens the store to continue; an extension that is complete is put in place first."""
    if extension.is_pending(config.store):
        extension.put_in_place(config.store)
    return FeatureStore(config.store)


def _require_sound(stored: FeatureStore | None, wanted: Extension | None) -> None:
    """Refuses a damaged store or extension, before the models are loaded."""
    if stored is not None:
        require_sound(stored)
    if wanted is not None and wanted.made is not None:
        with extension.naming():
            require_sound(wanted.made)


def _require_space(plan: Plan, stored: FeatureStore | None) -> list[str]:
    """Refuses a build whose chunks do not fit on the disk.

    Returns:
        Notices: for compressed chunks, whose size is not known in advance, at most a warning.
    """
    path, samples = plan.decided.config.store, plan.decided.found.samples
    existing = stored if plan.decided.wanted is None else plan.decided.wanted.made
    freed = 0
    if existing is not None:
        done = set(existing.ledger.committed) - set(plan.decided.remade)
        needed = missing_bytes(plan.spec, samples, existing.path, done)
    else:
        needed = store_bytes(plan.spec, samples)
        if stored is None and is_folder(path):
            freed = creation.erasable_bytes(path)
    if plan.spec.codec == NONE:
        require_space(path, needed, freed)
        return []
    free = free_bytes(path)
    if free is None or needed <= free + freed:
        return []
    return [f"{path} takes {needed:,} bytes before compression, and {free + freed:,} are free"]


def open_writer(plan: Plan, stored: FeatureStore | None, lock: FileLock) -> StoreWriter:
    """The writer of a new store, of the store to continue, or of its extension."""
    decided = plan.decided
    path, samples, wanted = decided.config.store, decided.found.samples, decided.wanted
    if stored is None:
        return creation.create(path, plan.spec, plan.fingerprint, samples, lock)
    writer = StoreWriter.of(stored, lock)
    if decided.remade:
        writer.ledger.drop(decided.remade)
    if wanted is None:
        return writer
    if wanted.made is not None:
        with extension.naming():
            writer = StoreWriter.of(wanted.made, lock)
        wanted.take_over(writer)
        return writer
    make_folder(path / EXTENSION / RECORDS)
    # Fields that were allowed to differ are recorded with each chunk: for the chunks that the store
    # has already, its own values are true.
    kept = {name: stored.fingerprint[name] for name in plan.changed if name in stored.fingerprint}
    writer = creation.create(path / EXTENSION, plan.spec, plan.fingerprint | kept, samples, lock)
    wanted.take_over(writer)
    return writer


def _lock(config: BuildConfig, stack: ExitStack) -> FileLock:
    lock = stores.take_lock(config.store)
    stack.callback(lock.release)
    return lock


def _refuse_late(config: BuildConfig) -> None:
    """Refuses a store that another process created while this one loaded models unlocked."""
    if creation.state_of(config.store) == "store":
        raise InputError(
            f"Another process created {config.store} meanwhile; nothing was changed.\n"
            "Continue it with --resume, or choose another --store."
        )


def _scan_facts(found: Scan) -> dict[str, Any]:
    return {
        "samples": len(found.samples),
        "unmatched_images": list(found.unmatched_images),
        "unmatched_texts": list(found.unmatched_texts),
        "left_out": [list(pair) for pair in found.left_out],
        "alike": [list(names) for names in found.alike],
    }
