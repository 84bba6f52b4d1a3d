"""The main loop of a build: samples are taken, embedded and committed, chunk by chunk."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers import backbones as registry
from consumers.committing import Committer, MadeChunk
from consumers.embedding import Embedder
from consumers.notices import slow_paths
from consumers.plan import Plan
from consumers.resuming import INPUT_CACHE, refuse_bad
from consumers.running import EndedChunk
from consumers.stopping import stop_signals
from featurestore import extension
from featurestore.errors import InterruptedBuildError, ProducerError
from featurestore.records import BadInput, SampleRecord
from featurestore.store import FeatureStore
from featurestore.writer import StoreWriter
from producers.inputs import extend_cache, stat_of
from producers.pool import ProducerPool
from producers.source import require_inputs


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
        spec = writer.spec
        self._embedder = Embedder(
            plan.backbones, plan.batch_sizes, plan.view_parts, spec.chunk, plan.text_multiple
        )
        # The chunk whose samples are all taken, but whose texts may not be launched yet.
        self._ended: tuple[int, Sequence[SampleRecord]] | None = None
        self._texts = {
            name: backbone.text
            for name, backbone in plan.backbones.items()
            if registry.modality_of(backbone) == "text"
        }
        self._report = BuildReport(plan.config.store, spec.samples, spec.views)

    def execute(self) -> BuildReport:
        """Makes every chunk that is missing, in order."""
        self._take_over()
        missing = self._writer.ledger.missing
        spec = self._writer.spec
        todo = sum(len(spec.samples_of(chunk)) for chunk in missing)
        self._tell(
            "started",
            store=str(self._plan.config.store),
            samples=spec.samples,
            views=spec.views,
            done=spec.samples - todo,
            chunk=spec.chunk,
            features=dict(spec.dims),
            workers=self._plan.workers,
            slots=self._plan.job.slots,
            fingerprint=self._writer.fingerprint,
            changed=dict(self._plan.changed),
            notices=self._writer.notices + self._remade() + self._slow_paths(),
        )
        if self._plan.confirmed:
            extend_cache(self._plan.config.store / INPUT_CACHE, self._plan.confirmed)
        if missing:
            self._make(missing, workers=min(self._plan.workers, todo))
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

    def _remade(self) -> list[str]:
        count = len(self._plan.remade)
        return [f"{count} chunks are made again: their inputs changed"] if count else []

    def _slow_paths(self) -> list[str]:
        return slow_paths(self._plan.job, self._texts)

    def _make(self, missing: Sequence[int], workers: int) -> None:
        plan, spec = self._plan, self._writer.spec
        samples = (plan.found.samples[i] for chunk in missing for i in spec.samples_of(chunk))
        timeout_s = plan.config.sample_timeout_s
        start = time.monotonic()
        with (
            stop_signals() as stopped,
            ProducerPool(plan.job, samples, workers=workers, timeout_s=timeout_s) as pool,
            Committer(self._commit) as committer,
        ):
            settle = partial(self._settle, committer, pool, start)
            submit = partial(self._submit, committer, settle)
            for chunk in missing:
                try:
                    records = self._samples(chunk, pool, committer, settle)
                except ProducerError:
                    submit()  # the samples of the chunk before are all there
                    raise
                submit()
                self._embedder.end()
                self._refuse_bad(records)
                self._ended = chunk, records
                if stopped:
                    break
                self._write_on(committer, settle)
            submit()
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

    def _samples(
        self, chunk: int, pool: ProducerPool, committer: Committer, settle: Callable[[], None]
    ) -> list[SampleRecord]:
        """Takes a chunk's samples, between which the texts of the chunk before are launched."""
        meanwhile = partial(self._meanwhile, committer, settle)
        records: list[SampleRecord] = []
        count = len(self._writer.spec.samples_of(chunk))
        while len(records) < count:
            records.append(self._sample(pool, meanwhile))
            # Most are launched by ``meanwhile``, unless the backbones are the slower side.
            while self._embedder.launch(len(records) / count):
                pass
            self._write_on(committer, settle)
        return records

    def _meanwhile(self, committer: Committer, settle: Callable[[], None]) -> bool:
        """One thing to do while a sample is awaited; returns whether there may be another."""
        self._write_on(committer, settle)
        return self._embedder.launch()

    def _write_on(self, committer: Committer, settle: Callable[[], None]) -> None:
        """Settles a chunk that is written, and begins to write the ended one once it is whole."""
        if committer.done:
            settle()
        if not committer.busy and not self._embedder.left:
            self._submit(committer, settle)

    def _submit(self, committer: Committer, settle: Callable[[], None]) -> None:
        """Launches what is left of the ended chunk, if there is one, and begins to write it."""
        if self._ended is None:
            return
        made = MadeChunk(*self._ended, self._embedder.finish())
        settle()
        committer.submit(made)
        self._ended = None

    def _sample(self, pool: ProducerPool, waiting: Callable[[], bool]) -> SampleRecord:
        """Takes one sample and launches what is full of it."""
        views = pool.take(waiting)
        self._embedder.add(views)
        self._report.truncated.update(dict(zip(self._texts, views.cut, strict=True)))
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
        stats = {i: stat_of(self._plan.stats, i) for i in indices}
        extend_cache(self._plan.config.store / INPUT_CACHE, stats)

    def _rows(self, chunk: int, parts: Sequence[EndedChunk]) -> npt.NDArray[np.float32]:
        """A chunk's rows of one feature, ``[n, V, D]``; those that the store has come from it."""
        indices = self._writer.spec.samples_of(chunk)
        rows = [
            part.take(indices[0], views.start).reshape(len(indices), -1, part.dim)
            for views, part in zip(self._plan.view_parts, parts, strict=True)
        ]
        if self._wanted is not None and self._wanted.kind == "views":
            rows.insert(0, self._wanted.base.read_chunk(parts[0].feature, chunk))
        return np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]

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
