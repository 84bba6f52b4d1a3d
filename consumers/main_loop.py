"""The main loop of a build: takes, embeds and commits samples, chunk by chunk."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from consumers.backbones import registry
from consumers.build_report import BuildReport, absent_in
from consumers.chunk_commit import ChunkCommit
from consumers.device.computing import ComputePool
from consumers.engine.batcher import LaunchedFeature
from consumers.engine.committing import Committer, LaunchedChunk
from consumers.engine.embedding import Embedder
from consumers.notices import slow_paths
from consumers.plan import Plan
from consumers.resume.checks import INPUT_CACHE, input_cache_of, refuse_bad
from consumers.stopping import Notifier, interrupted, stop_signals
from consumers.workers.assignment import Assignment, Claims, Missing, Pace, WorkerClaims
from consumers.workers.share import Share
from consumers.workers.walk import Walk
from featurestore.errors import BackboneError
from featurestore.records import SampleRecord
from featurestore.storage.files import writer_name
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from producers.pool import ProducerPool
from producers.sources.inputs import extend_cache
from producers.sources.scan import require_inputs


def run_plan(
    plan: Plan,
    writer: StoreWriter,
    notify: Callable[..., None],
    share: Share | None = None,
) -> BuildReport:
    """Builds the chunks that ``writer`` lacks.

    Args:
        plan: the build.
        writer: the store that the chunks are committed to.
        notify: callback that receives an event's name and, as keywords, its facts.
        share: which of several workers this process is; None if it builds all chunks.

    Raises:
        ManyViewsError: see :func:`consumers.build.build`.
    """
    return _Run(plan, writer, notify, share).execute()


class _Run:
    """One run of the main loop."""

    def __init__(
        self,
        plan: Plan,
        writer: StoreWriter,
        notify: Callable[..., None],
        share: Share | None,
    ) -> None:
        self._plan, self._decided = plan, plan.decided
        self._share = share
        self._writer = writer
        self._notify = Notifier(notify)
        self._wanted = plan.decided.wanted
        spec = writer.spec
        self._texts = {
            name: backbone.text
            for name, backbone in plan.backbones.items()
            if registry.modality_of(backbone) == "text"
        }
        self._report = BuildReport(plan.decided.config.store, spec.samples, spec.views)
        self._pace = Pace()
        self._filling = 0
        cache = INPUT_CACHE if share is None else input_cache_of(writer_name())
        self._inputs_file = plan.decided.config.store / cache

    def execute(self) -> BuildReport:
        """Builds every missing chunk, or this worker's share of them."""
        missing = self._writer.ledger.missing
        spec = self._writer.spec
        todo = sum(len(spec.samples_of(chunk)) for chunk in missing)
        self._notify(
            "started",
            store=str(self._decided.config.store),
            samples=spec.samples,
            views=spec.views,
            done=spec.samples - todo,
            chunk=spec.chunk,
            features=dict(spec.dims),
            host=socket.gethostname(),
            device=self._decided.device,
            worker=None if self._share is None else str(self._share),
            producers=self._plan.producers,
            threads=self._decided.threads,
            slots=self._plan.job.slots,
            fingerprint=self._writer.fingerprint,
            changed=dict(self._plan.changed),
            notices=self._writer.notices + self._rebuilt() + self._slow_paths(),
        )
        if self._decided.confirmed:
            extend_cache(self._inputs_file, self._decided.confirmed)
        if missing:
            try:
                self._build(missing, producers=min(self._plan.producers, todo))
            except BackboneError as e:
                e.name_chunk(self._filling)  # unless it was raised for the chunk before
                raise
        self._finish()
        self._notify("finished", **self._report.facts())
        return self._report

    def _finish(self) -> None:
        """Seals the store, and puts an extension in place, if no other worker is left to do so."""
        store: FeatureStore = self._writer
        alone = self._writer.alone()
        if alone is not None:
            alone.finish()
            store = alone if self._wanted is None else self._wanted.finish(alone)
        bad = store.bad_inputs
        if alone is None and self._wanted is not None:
            bad = list(dict.fromkeys([*self._wanted.base.bad_inputs, *bad]))
        self._report.bad = bad
        self._report.absent = absent_in(store)

    def _rebuilt(self) -> list[str]:
        count = len(self._decided.remade)
        chunks = "chunk is" if count == 1 else "chunks are"
        return [f"{count:,} {chunks} rebuilt because inputs changed"] if count else []

    def _slow_paths(self) -> list[str]:
        return slow_paths(self._plan.job, self._texts)

    def _build(self, missing: Sequence[int], producers: int) -> None:
        plan, spec = self._plan, self._writer.spec
        claims = self._claims(missing)
        work = Assignment(claims, spec, self._decided.found.samples)
        timeout_s = self._decided.config.sample_timeout_s
        start = time.monotonic()
        with (
            stop_signals(self._acknowledge) as stopped,
            ProducerPool(
                plan.job,
                work,
                producers=producers,
                timeout_s=timeout_s,
                where=self._decided.found.places.where,
            ) as pool,
            Committer(ChunkCommit(plan, self._writer, self._inputs_file)) as committer,
            # Exited first: what the committer waits for is computed by then, or cancelled.
            ComputePool(self._decided.threads, plan.device) as compute,
        ):
            embedder = self._embedder(compute)
            report = partial(self._report_committed, committer, pool, start)
            while True:
                chunk = work.next_chunk()
                if chunk is None:
                    report(wait=True)
                    chunk = claims.wait(stopped)
                    if chunk is None:
                        break
                    work.assign(chunk)
                    continue
                self._filling = chunk
                if claims.is_needed(chunk):
                    need = compute.start_chunk(partial(claims.is_needed, chunk))
                    records, features = self._fill(chunk, pool, embedder, compute, report)
                    report(wait=True)
                    committer.write(LaunchedChunk(chunk, records, features, need))
                else:
                    _discard(work.leave(chunk), pool, report)
                if stopped:
                    break
            report(wait=True)
            self._writer.refresh()
            if stopped and not self._writer.complete:
                raise interrupted(stopped[0], self._writer)

    def _claims(self, missing: Sequence[int]) -> Claims:
        """The chunks that this process builds."""
        if self._share is None:
            return Missing(missing)
        # Chunks record which versions were allowed to differ, so that two workers may record
        # different ones.
        walk = Walk(
            self._share,
            self._writer.spec.chunks,
            self._writer.ledger.committed_now,
            remakes=not self._decided.config.allow_version_change,
        )
        writer = self._writer
        return WorkerClaims(
            walk, self._pace.chunk_s, writer.ledger.is_committed_now, writer.is_only
        )

    def _acknowledge(self, number: int) -> None:
        """Reports the first stop signal at once; called by its handler."""
        self._notify.from_handler("stopping", signal=signal.Signals(number).name)

    def _embedder(self, compute: ComputePool) -> Embedder:
        plan, chunk = self._plan, self._writer.spec.chunk
        return Embedder(
            plan.backbones, plan.batch_sizes, plan.view_parts, chunk, plan.text_multiple, compute
        )

    def _report_committed(
        self, committer: Committer, pool: ProducerPool, start: float, *, wait: bool = False
    ) -> None:
        """Reports the chunk that is being written if it is committed, or waits until it is."""
        if not (wait or committer.done):
            return
        committed = committer.committed()
        if committed is None:
            return
        self._report.built += len(committed.records)
        self._report.seconds = time.monotonic() - start
        self._report.replaced = pool.replaced
        self._pace.mark()
        self._notify("chunk", chunk=committed.chunk, **self._report.chunk_facts(committed.records))

    def _fill(
        self,
        chunk: int,
        pool: ProducerPool,
        embedder: Embedder,
        compute: ComputePool,
        waiting: Callable[[], None],
    ) -> tuple[list[SampleRecord], list[list[LaunchedFeature]]]:
        """Takes a chunk's samples and launches its batches; does not wait for its features."""
        records: list[SampleRecord] = []
        try:
            for _ in self._writer.spec.samples_of(chunk):
                records.append(self._sample(pool, embedder, compute, waiting))
                waiting()
            self._refuse_bad(records)
            return records, embedder.launch()
        except BaseException:
            embedder.discard()
            raise

    def _sample(
        self,
        pool: ProducerPool,
        embedder: Embedder,
        compute: ComputePool,
        waiting: Callable[[], None],
    ) -> SampleRecord:
        """Takes one sample and launches the batches that it fills."""
        waited_s, idle_s = pool.waited_s, compute.idle_s
        views = pool.take(waiting)
        # While the compute threads have work, waiting here does not cost time.
        self._report.waited_s += min(pool.waited_s - waited_s, max(0.0, compute.idle_s - idle_s))
        embedder.add(views)
        self._report.truncated.update(dict(zip(self._texts, views.cut, strict=True)))
        pool.release(views)
        self._notify("sample", filled=pool.filled, waited_s=self._report.waited_s)
        return views.record

    def _refuse_bad(self, records: Sequence[SampleRecord]) -> None:
        bad = [b for r in records for b in r.bad]
        if any(b.reason == "missing" for b in bad):
            require_inputs(self._decided.found)
        if self._decided.config.bad_sample == "fail":
            refuse_bad(bad, self._decided.found.samples, "This chunk has")


def _discard(count: int, pool: ProducerPool, waiting: Callable[[], None]) -> None:
    """Takes samples that were dispatched, of a chunk that another worker has committed."""
    for _ in range(count):
        pool.release(pool.take(waiting))
        waiting()
