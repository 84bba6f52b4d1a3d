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

from consumers.backbones import registry
from consumers.device.computing import ComputePool
from consumers.engine.committing import Committer, MadeChunk
from consumers.engine.embedding import Embedder
from consumers.engine.runner import EndedChunk
from consumers.notices import slow_paths
from consumers.plan import Plan
from consumers.resume.checks import INPUT_CACHE, refuse_bad
from consumers.stopping import stop_signals
from featurestore.errors import InterruptedBuildError
from featurestore.records import BadInput, SampleRecord
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.wording import amount
from producers.pool import ProducerPool
from producers.sources.inputs import extend_cache, stat_of
from producers.sources.source import require_inputs


@dataclass(slots=True)
class BuildReport:
    """How a build ended.

    Attributes:
        store: the store.
        samples: samples in the store.
        views: views per sample.
        built: samples made by this run.
        seconds: wall-clock seconds of making them.
        waited_s: of these, seconds in which the backbones waited for producers; on a CPU, those of
            its threads on average.
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
            threads=self._plan.threads,
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
            store = self._wanted.finish(self._writer)
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
        made = "chunk is" if count == 1 else "chunks are"
        return [f"{count:,} {made} made again, as inputs changed"] if count else []

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
            # Left first: what the committer waits for is computed by then, or cancelled.
            ComputePool(plan.threads, plan.device) as compute,
        ):
            embedder = self._embedder(compute)
            settle = partial(self._settle, committer, pool, start)
            for chunk in missing:
                records, ended = self._chunk(chunk, pool, embedder, compute, settle)
                settle(wait=True)
                committer.submit(MadeChunk(chunk, records, ended))
                if stopped:
                    break
            settle(wait=True)
            if stopped and not self._writer.complete:
                raise _interrupted(stopped[0], self._writer)

    def _embedder(self, compute: ComputePool) -> Embedder:
        plan, chunk = self._plan, self._writer.spec.chunk
        return Embedder(
            plan.backbones, plan.batch_sizes, plan.view_parts, chunk, plan.text_multiple, compute
        )

    def _settle(
        self, committer: Committer, pool: ProducerPool, start: float, *, wait: bool = False
    ) -> None:
        """Reports the chunk that was submitted last once it is written, or waits until it is."""
        if not (wait or committer.done):
            return
        made = committer.settle()
        if made is None:
            return
        self._report.built += len(made.records)
        self._report.seconds = time.monotonic() - start
        self._report.replaced = pool.replaced
        self._tell("chunk", chunk=made.chunk, **_chunk_facts(made.records, self._report))

    def _chunk(
        self,
        chunk: int,
        pool: ProducerPool,
        embedder: Embedder,
        compute: ComputePool,
        settle: Callable[[], None],
    ) -> tuple[list[SampleRecord], list[list[EndedChunk]]]:
        """Takes a chunk's samples; its features may be still to come."""
        records: list[SampleRecord] = []
        try:
            for _ in self._writer.spec.samples_of(chunk):
                records.append(self._sample(pool, embedder, compute, settle))
                settle()
            self._refuse_bad(records)
            return records, embedder.end()
        except BaseException:
            embedder.discard()
            raise

    def _sample(
        self,
        pool: ProducerPool,
        embedder: Embedder,
        compute: ComputePool,
        settle: Callable[[], None],
    ) -> SampleRecord:
        """Takes one sample and submits what is full of it."""
        waited_s, idle_s = pool.waited_s, compute.idle_s
        views = pool.take(settle)
        # Where the threads had work meanwhile, nobody waited for the producers.
        self._report.waited_s += min(pool.waited_s - waited_s, max(0.0, compute.idle_s - idle_s))
        embedder.add(views)
        self._report.truncated.update(dict(zip(self._texts, views.cut, strict=True)))
        pool.release(views)
        self._tell("sample", filled=pool.filled, waited_s=self._report.waited_s)
        return views.record

    def _commit(self, made: MadeChunk) -> None:
        """Writes one chunk; runs beside the main loop."""
        spec = self._writer.spec
        indices = spec.samples_of(made.chunk)
        rows = {parts[0].feature: self._rows(made.chunk, parts) for parts in made.ended}
        changed = dict(self._plan.changed)
        if self._wanted is not None:
            for record in made.records:
                self._wanted.require_same_inputs(record)
            if self._wanted.kind == "views":
                changed = {**self._wanted.changed_before(made.chunk), **changed}
        self._writer.commit_chunk(made.chunk, rows, made.records, changed)
        stats = {i: stat_of(self._plan.stats, i) for i in indices}
        extend_cache(self._plan.config.store / INPUT_CACHE, stats)

    def _rows(self, chunk: int, parts: Sequence[EndedChunk]) -> npt.NDArray[np.float32]:
        """A chunk's rows of one feature, ``[n, V, D]``; those that the store has come from it."""
        indices = self._writer.spec.samples_of(chunk)
        rows = [
            part.take(indices[0], views.start).reshape(len(indices), -1, part.backbone.dim)
            for views, part in zip(self._plan.view_parts, parts, strict=True)
        ]
        if self._wanted is not None and self._wanted.kind == "views":
            rows.insert(0, self._wanted.rows_before(parts[0].feature, chunk))
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
        f"Stopped by {signal.Signals(number).name} after {done} of {amount(chunks, 'chunk')}.\n"
        "Everything committed is kept; go on with --resume.",
    )
