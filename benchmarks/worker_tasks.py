"""What ``benchmarks.workers`` measures: workers with sleeping devices, and records."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.workload import NullText
from consumers.backbones import registry
from consumers.build import build
from consumers.config import BuildConfig
from consumers.workers import assignment
from consumers.workers.share import Share
from featurestore.records import Sample, SampleRecord, stems_sha256
from featurestore.storage.commits import recorded
from featurestore.storage.creation import create
from featurestore.storage.entries import ChunkEntry
from featurestore.storage.files import LocalFiles, writer_name
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock

VIEWS = 4
FEATURE = "clip_text"
# Time between two looks at the store, as a share of the time of a chunk: chunks of this benchmark
# are as short as a tenth of those of a real build, and what goes by the clock is as well.
_LOOK = 0.05
# Samples per chunk of the records that are measured: that of a build of MM-IMDb.
_ROWS = 64


class SleepingText(NullText):
    """A device that takes ``seconds`` for a chunk, without using a core.

    One batch is one chunk.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(FEATURE)
        self._seconds = seconds

    def embed(self, _input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The number of tokens, in every dimension, after a while."""
        time.sleep(self._seconds)
        return super().embed(_input_ids, attention_mask)


@dataclass(frozen=True, slots=True)
class Outcome:
    """When the workers of a build committed chunks.

    Attributes:
        start_s: when the last worker had its first sample, or one of them was killed.
        commits: the chunks that workers committed, each with its time, in the order of the times;
            one may be missing that a worker committed in the instant in which it was killed.
        chunks: number of chunks of the store.
        survivors: number of workers that had begun a chunk at the start, because the start is the
            death of another one.
    """

    start_s: float
    commits: Sequence[tuple[float, int]]
    chunks: int
    survivors: int = 0

    @property
    def rate(self) -> float:
        """Chunks of the store per second, from the start until the store is complete.

        Of the chunks that were begun before the start, on average half was built by then.
        """
        first: dict[int, float] = {}
        for moment, chunk in self.commits:
            first.setdefault(chunk, moment)
        built = sum(moment > self.start_s for moment in first.values()) - self.survivors / 2
        return built / (max(first.values()) - self.start_s)

    @property
    def twice(self) -> float:
        """Chunks that were built again, as a share of all."""
        again = len(self.commits) - len({chunk for _, chunk in self.commits})
        return again / self.chunks


def run_workers(
    work: Path, data: Path, seconds: Sequence[float], *, chunk: int, kill_at: int | None
) -> Outcome:
    """Builds a store by several workers, and deletes it.

    Args:
        work: folder for the store.
        data: folder of the samples.
        seconds: the time that the device of each worker takes for a chunk.
        chunk: number of samples per chunk.
        kill_at: number of committed chunks at which the first worker is killed; None for never.

    Raises:
        RuntimeError: a worker failed.
    """
    store = work / "store"
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    begin = context.Barrier(len(seconds))
    workers = []
    for number, chunk_s in enumerate(seconds):
        near, far = context.Pipe(duplex=False)
        config = _config(data, store, Share(number, len(seconds)), chunk)
        process = context.Process(target=_work, args=(config, chunk_s, begin, far))
        process.start()
        far.close()
        workers.append((process, near))
    killed_s = 0.0
    if kill_at is not None:
        while not store.exists() or _recorded(store) < kill_at:
            time.sleep(0.01)
        os.kill(workers[0][0].pid or 0, signal.SIGKILL)
        killed_s = time.monotonic()
    events = [event for _, near in workers for event in _received(near)]
    for process, _ in workers:
        process.join()
    codes = [process.exitcode for process, _ in workers]
    if codes[1:] != [0] * len(codes[1:]) or codes[0] != (-signal.SIGKILL if killed_s else 0):
        raise RuntimeError(f"workers ended with {codes}")
    samples = FeatureStore(store).spec.samples
    shutil.rmtree(store)
    begun_s = max(moment for moment, chunk in events if chunk is None)
    commits = sorted((moment, chunk) for moment, chunk in events if chunk is not None)
    survivors = len(seconds) - 1 if killed_s else 0
    return Outcome(killed_s or begun_s, commits, -(-samples // chunk), survivors)


def _config(data: Path, store: Path, share: Share, chunk: int) -> BuildConfig:
    return BuildConfig(
        data_dir=data,
        store=store,
        views=VIEWS,
        features=(FEATURE,),
        batch_sizes={FEATURE: chunk * VIEWS},
        chunk=chunk,
        device="cpu",
        producers=1,
        threads=1,
        resume=True,
        worker=share,
    )


def _work(config: BuildConfig, chunk_s: float, begin: Barrier, report: Connection) -> None:
    """One worker, in a process of its own: sends the moments of its events."""
    registry.load = lambda *_: SleepingText(chunk_s)
    assignment._LOOK_S = _LOOK * chunk_s
    has_begun = False

    def note(event: str, facts: Mapping[str, Any]) -> None:
        nonlocal has_begun
        if event == "sample" and not has_begun:
            has_begun = True
            begin.wait()
            report.send((time.monotonic(), None))
        if event == "chunk":
            report.send((time.monotonic(), facts["chunk"]))

    build(config, [note])


def _received(report: Connection) -> list[tuple[float, int | None]]:
    """The times of a worker's commits with their chunks, and of its first sample, with None."""
    events = []
    while True:
        try:
            events.append(report.recv())
        except (EOFError, OSError):
            return events


def _recorded(store: Path) -> int:
    return len(recorded(LocalFiles(store)))


def committed_in(folder: Path, chunks: int) -> tuple[float, float]:
    """The time of a commit by a line of the ledger, and by a record, in seconds.

    The two take turns.
    """
    for name in ("lines", "records"):
        (folder / name / "records").mkdir(parents=True)
        (folder / name / Ledger.FILE).touch()
    lines = Ledger(LocalFiles(folder / "lines"), chunks, _ROWS)
    records = Ledger(LocalFiles(folder / "records", writer_name()), chunks, _ROWS)
    entry = _entry()
    spent = [0.0, 0.0]
    for chunk in range(chunks):
        one = _moved(entry, chunk)
        for number, commit in enumerate((lines.commit, records.record)):
            start = time.perf_counter()
            commit(one)
            spent[number] += time.perf_counter() - start
    return spent[0] / chunks, spent[1] / chunks


def opened_in(folder: Path, chunks: int) -> float:
    """The time in seconds in which a store is opened that has only records."""
    samples = [
        Sample(i, f"{i:07d}", f"{i:07d}.jpg", f"{i:07d}.json") for i in range(chunks * _ROWS)
    ]
    spec = StoreSpec(len(samples), VIEWS, _ROWS, {FEATURE: 64})
    fingerprint: Fingerprint = {"stems_sha256": stems_sha256([sample.stem for sample in samples])}
    create(folder, spec, fingerprint, samples, take_lock(folder)).close()
    written = LocalFiles(folder, writer_name())
    honest, unsynced = os.fsync, cast("Any", os.fstat)
    os.fsync = unsynced  # reading does not depend on it
    try:
        ledger, entry = Ledger(written, chunks, _ROWS), _entry()
        for chunk in range(chunks):
            ledger.record(_moved(entry, chunk))
    finally:
        os.fsync = honest
    start = time.perf_counter()
    store = FeatureStore(folder)
    seconds = time.perf_counter() - start
    if not store.complete:
        raise RuntimeError("records are missing")
    return seconds


def _entry() -> ChunkEntry:
    """What a build of the paper's four features commits for one chunk."""
    names = ("clip_image", "clip_text", "blip2_image", "blip2_text")
    files = {f"{name}/c.0.0.0": (16_056_320, 0xDEADBEEF) for name in names}
    files |= {f"records/moments/{name}/c.0.0.0": (8192, 0xDEADBEEF) for name in names}
    records = [SampleRecord(i, "0" * 64, "1" * 64, 150) for i in range(_ROWS)]
    return ChunkEntry(0, files, records)


def _moved(entry: ChunkEntry, chunk: int) -> ChunkEntry:
    """The same entry of another chunk."""
    first = chunk * _ROWS
    records = [replace(record, index=first + i) for i, record in enumerate(entry.samples)]
    return replace(entry, chunk=chunk, samples=records)
