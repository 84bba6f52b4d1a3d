"""Put source, producers, backbones and store together: the main loop of a build."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers import backbones as registry
from consumers.batching import ImageBatcher, TextBatcher
from consumers.committing import Committer, MadeChunk
from consumers.extending import completed, find_extension, naming_extension
from consumers.notices import slow_paths
from consumers.plan import INPUT_CACHE, Plan, check_intent, make_plan, refuse_bad
from consumers.running import Batcher, EndedChunk
from consumers.stopping import stop_signals
from featurestore import extension
from featurestore import writer as stores
from featurestore.config import BuildConfig
from featurestore.durable import FileLock, make_folder
from featurestore.errors import InputError, InterruptedBuildError
from featurestore.records import BadInput, SampleRecord
from featurestore.store import EXTENSION, RECORDS, FeatureStore
from featurestore.writer import StoreWriter
from producers.inputs import extend_cache
from producers.pool import ProducerPool, SampleViews
from producers.source import Scan, require_inputs, scan

# Called with an event's name and its facts; see ``progress`` for those that listen.
Observer = Callable[[str, Mapping[str, Any]], None]


@dataclass(slots=True)
class BuildReport:
    """How a build ended.

    Attributes:
        store: the store.
        samples: samples in the store.
        views: views per sample.
        built: samples made by this run.
        seconds: wall-clock seconds of making them.
        waited_s: of these, seconds in which the backbones waited for producers.
        bad: every input of the store that a placeholder stands in for.
        truncated: views cut to the tokenizer's length per text feature, in this run.
        replaced: producers that died and were replaced, by what ended them.
    """

    store: Path
    samples: int
    views: int
    built: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    bad: list[BadInput] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


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
        stopped = isinstance(e, (InterruptedBuildError, KeyboardInterrupt))
        tell("interrupted" if stopped else "failed", error=str(e) or type(e).__name__)
        raise


def _build(config: BuildConfig, tell: Callable[..., None]) -> BuildReport:
    found = scan(config.data_dir)
    tell("scanned", **_scan_facts(found))
    state = stores.state_of(config.store)
    check_intent(config, state)
    with ExitStack() as stack:
        lock = _lock(config, stack) if state != "absent" else None
        stored = _open(config) if state == "store" and config.resume else None
        config = completed(config, stored)
        wanted = find_extension(config, stored, found)
        plan = make_plan(config, found, stored, wanted, tell)
        if lock is None:
            lock = _lock(config, stack)
            _refuse_late(config)
        return run_plan(plan, _writer(plan, stored, lock), tell)


def _open(config: BuildConfig) -> FeatureStore:
    """The store to go on with; an extension that is complete is put in place first."""
    if extension.is_pending(config.store):
        extension.put_in_place(config.store)
    return FeatureStore(config.store)


def _writer(plan: Plan, stored: FeatureStore | None, lock: FileLock) -> StoreWriter:
    """The store that rows are written to: new, gone on with, or the extension of one."""
    path, samples = plan.config.store, plan.found.samples
    if stored is None:
        return stores.create(path, plan.spec, plan.fingerprint, samples, lock)
    writer = StoreWriter.of(stored, lock)
    if plan.wanted is None:
        return writer
    if plan.wanted.made is not None:
        with naming_extension():
            return StoreWriter.of(plan.wanted.made, lock)
    make_folder(path / EXTENSION / RECORDS)
    return stores.create(path / EXTENSION, plan.spec, plan.fingerprint, samples, lock)


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
    }


def run_plan(plan: Plan, writer: StoreWriter, tell: Callable[..., None]) -> BuildReport:
    """Makes all that ``writer`` lacks of what was planned; :func:`build` says what it raises."""
    return _Run(plan, writer, tell).execute()


class _Run:
    """One run of the main loop."""

    def __init__(self, plan: Plan, writer: StoreWriter, tell: Callable[..., None]) -> None:
        self._plan = plan
        self._writer = writer
        self._tell = tell
        self._wanted = plan.wanted
        self._parts = plan.view_parts
        # One for each part of the views: rows of two parts never share a batch.
        self._images: dict[str, list[ImageBatcher]] = {}
        self._texts: dict[str, list[TextBatcher]] = {}
        for name, backbone in plan.backbones.items():
            batch, rows = plan.batch_sizes[name], [writer.spec.chunk * len(p) for p in self._parts]
            if registry.modality_of(backbone) == "image":
                self._images[name] = [ImageBatcher(backbone, batch, n) for n in rows]
            else:
                self._texts[name] = [TextBatcher(backbone, batch, n) for n in rows]
        self._batchers: dict[str, Sequence[Batcher]] = {**self._images, **self._texts}
        spec = writer.spec
        self._report = BuildReport(plan.config.store, spec.samples, spec.views)

    def execute(self) -> BuildReport:
        """Makes every chunk that is missing, in order."""
        self._take_over()
        missing = self._writer.ledger.missing
        spec = self._writer.spec
        indices = [i for chunk in missing for i in spec.samples_of(chunk)]
        self._tell(
            "started",
            store=str(self._plan.config.store),
            samples=spec.samples,
            views=spec.views,
            done=spec.samples - len(indices),
            chunk=spec.chunk,
            features=dict(spec.dims),
            workers=self._plan.workers,
            slots=self._plan.job.slots,
            fingerprint=self._writer.fingerprint,
            changed=dict(self._plan.changed),
            notices=self._writer.notices + self._slow_paths(),
        )
        if self._plan.confirmed:
            extend_cache(self._plan.config.store / INPUT_CACHE, self._plan.confirmed)
        if missing:
            self._make(missing, indices)
        self._writer.finish()
        store: FeatureStore = self._writer
        if self._wanted is not None:
            whole = self._wanted.whole(self._writer.fingerprint)
            extension.finish(self._wanted.base, self._writer, whole)
            store = FeatureStore(self._plan.config.store)
        self._report.bad = store.bad_inputs
        self._tell("finished", **_report_facts(self._report))
        return self._report

    def _take_over(self) -> None:
        """Commits the chunks that the store has already as its extension is to have them."""
        wanted = self._wanted
        if wanted is None:
            return
        for chunk in self._writer.ledger.missing:
            if wanted.takes_over(chunk):
                rows = {n: wanted.base.read_chunk(n, chunk) for n in self._writer.features}
                entry = wanted.base.ledger[chunk]
                self._writer.commit_chunk(chunk, rows, entry.samples, entry.changed)

    def _slow_paths(self) -> list[str]:
        texts = {name: self._plan.backbones[name].text for name in self._texts}
        return slow_paths(self._plan.job, texts)

    def _make(self, missing: Sequence[int], indices: Sequence[int]) -> None:
        plan = self._plan
        samples = (plan.found.samples[i] for i in indices)
        workers = min(plan.workers, len(indices))
        timeout_s = plan.config.sample_timeout_s
        start = time.monotonic()
        with (
            stop_signals() as stopped,
            ProducerPool(plan.job, samples, workers=workers, timeout_s=timeout_s) as pool,
            Committer(self._commit) as committer,
        ):
            settle = partial(self._settle, committer, pool, start)

            def settle_written() -> None:
                """Tells of a chunk that is written by now, or raises what came in its way."""
                if committer.done:
                    settle()

            for chunk in missing:
                records: list[SampleRecord] = []
                for _ in self._writer.spec.samples_of(chunk):
                    records.append(self._sample(pool, settle_written))
                    settle_written()
                ended = [[b.end() for b in batchers] for batchers in self._batchers.values()]
                self._refuse_bad(records)
                settle()
                committer.submit(MadeChunk(chunk, records, ended))
                if stopped:
                    break
            settle()
            if stopped and not self._writer.complete:
                raise _interrupted(stopped[0], self._writer)

    def _settle(self, committer: Committer, pool: ProducerPool, start: float) -> None:
        """Waits for the chunk that is being written, if there is one, and tells of it."""
        made = committer.settle()
        if made is None:
            return
        self._report.built += len(made.records)
        self._report.seconds = time.monotonic() - start
        self._report.waited_s = pool.waited_s
        self._report.replaced = pool.replaced
        self._tell("chunk", chunk=made.chunk, **_chunk_facts(made.records, self._report))

    def _sample(self, pool: ProducerPool, waiting: Callable[[], None]) -> SampleRecord:
        """Takes one sample and launches what is full of it."""
        views = pool.take(waiting)
        self._add(views)
        pool.release(views)
        self._tell("sample", filled=pool.filled, waited_s=pool.waited_s)
        return views.record

    def _commit(self, made: MadeChunk) -> None:
        """Writes one chunk; runs beside the main loop."""
        spec = self._writer.spec
        indices = spec.samples_of(made.chunk)
        rows = {parts[0].feature: self._rows(made.chunk, parts) for parts in made.ended}
        changed = dict(self._plan.changed)
        if self._wanted is not None:
            for record in made.records:
                extension.require_same_inputs(self._wanted.base, record)
            if self._wanted.kind == "views":
                changed = {**self._wanted.base.ledger[made.chunk].changed, **changed}
        self._writer.commit_chunk(made.chunk, rows, made.records, changed)
        stats = {i: self._plan.stats[i] for i in indices}
        extend_cache(self._plan.config.store / INPUT_CACHE, stats)

    def _rows(self, chunk: int, parts: Sequence[EndedChunk]) -> npt.NDArray[np.float32]:
        """A chunk's rows of one feature, ``[n, V, D]``; those that the store has come from it."""
        indices = self._writer.spec.samples_of(chunk)
        rows = [part.take(indices[0]).reshape(len(indices), -1, part.dim) for part in parts]
        if self._wanted is not None and self._wanted.kind == "views":
            rows.insert(0, self._wanted.base.read_chunk(parts[0].feature, chunk))
        return np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]

    def _add(self, views: SampleViews) -> None:
        for images in self._images.values():
            spec = images[0].backbone.image
            clean, augmented = views.arrays.clean[spec], views.arrays.augmented[spec.size]
            for part, batcher in zip(self._parts, images, strict=True):
                first = clean if part.start == 0 else augmented[part.start - 1]
                batcher.add(first, augmented[part.start : part.stop - 1])
        for k, (name, texts) in enumerate(self._texts.items()):
            for part, text_batcher in zip(self._parts, texts, strict=True):
                rows = slice(part.start, part.stop)
                text_batcher.add(views.arrays.ids[k][rows], views.arrays.lengths[k][rows])
            self._report.truncated[name] += views.cut[k]

    def _refuse_bad(self, records: Sequence[SampleRecord]) -> None:
        bad = [b for r in records for b in r.bad]
        if any(b.reason == "missing" for b in bad):
            require_inputs(self._plan.found)
        if self._plan.config.bad_sample == "fail":
            refuse_bad(bad, self._plan.found.samples, "This chunk has")


def _chunk_facts(records: Sequence[SampleRecord], report: BuildReport) -> dict[str, Any]:
    return {
        "samples": len(records),
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "waited_s": round(report.waited_s, 3),
        "bad": [[b.index, b.modality, b.reason, b.detail] for r in records for b in r.bad],
    }


def _report_facts(report: BuildReport) -> dict[str, Any]:
    return {
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "waited_s": round(report.waited_s, 3),
        "bad": len(report.bad),
        "truncated": dict(report.truncated),
        "replaced": dict(report.replaced),
    }


def _interrupted(number: int, writer: StoreWriter) -> InterruptedBuildError:
    done, chunks = len(writer.ledger), writer.spec.chunks
    return InterruptedBuildError(
        number,
        f"Stopped by {signal.Signals(number).name} after {done} of {chunks} chunks.\n"
        "Everything committed is kept; go on with --resume.",
    )
