"""Shuffling within windows of chunks compared with a full shuffle: randomness and speed.

    python -m benchmarks.shuffle [--quick]

How random: orders of MM-IMDb's 25,959 samples in chunks of 64. The worst case for a window is a
store whose labels are sorted, so it is measured with 23 labels in long runs: how far a batch's
labels are from those of all samples (total variation distance, 0 to 1), as a multiple of what a
full shuffle gives.

How fast: the page cache holds 16 chunks and forgets the rest, as for a store much larger than
memory: it is emptied (posix_fadvise) and the store opened again after as many items as 16 chunks
have. The reader is configured to see no memory for keeping a store. Bytes from the disk are counted
by the kernel (/proc/self/io), and so are page faults. Then the same with the store in memory.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import measuring
from benchmarks.measuring import Lap, Spread, table
from featurestore import FeatureBatchSampler, FeatureDataset, Shuffle
from featurestore.reading import mapping
from featurestore.records import Sample, SampleRecord
from featurestore.sampling import ordering
from featurestore.storage.creation import create
from featurestore.storage.shape import StoreSpec
from featurestore.storage.writer import take_lock

SAMPLES_OF_MMIMDB, CHUNK, BATCH, LABELS = 25_959, 64, 512, 23
VIEWS, DIM, WINDOW = 70, 512, 16
FULL = "full shuffle"
Measured = npt.NDArray[np.float64]


def orders(window: int | None, epoch: int) -> ordering.Integers:
    """An epoch's order; a window of 0 is the order of the store."""
    count = SAMPLES_OF_MMIMDB
    if window is None:
        return ordering.permutation(count, 0, epoch)
    if window == 0:
        return np.arange(count)
    chunk_of = np.arange(count) // CHUNK
    grouped = ordering.chunk_by_chunk(chunk_of, 0, epoch)
    return ordering.shuffle_windows(grouped, chunk_of, window, 0, epoch)


def randomness(order: ordering.Integers) -> tuple[float, float, float]:
    """Chunks in a batch, rank correlation of place and sample, distance of a batch's labels."""
    label_of = np.arange(len(order)) * LABELS // len(order)
    overall = np.bincount(label_of, minlength=LABELS) / len(order)
    chunks, distances = [], []
    for start in range(0, len(order) - BATCH + 1, BATCH):
        batch = order[start : start + BATCH]
        chunks.append(len(np.unique(batch // CHUNK)))
        share = np.bincount(label_of[batch], minlength=LABELS) / BATCH
        distances.append(np.abs(share - overall).sum() / 2)
    correlation = np.corrcoef(np.arange(len(order)), order)[0, 1]  # both are ranks
    return float(np.mean(chunks)), abs(float(correlation)), float(np.mean(distances))


def how_random(epochs: int) -> str:
    """The first table."""
    found = {}
    windows = {FULL: None, **{f"window of {w}": w for w in (1, 4, 16, 64, 128)}, "in order": 0}
    for name, window in windows.items():
        measured = [randomness(orders(window, epoch)) for epoch in range(epochs)]
        found[name] = [Spread.of(column) for column in zip(*measured, strict=True)]
    full = found[FULL][2].median
    rows = [
        [name, f"{chunks.median:.1f}", f"{correlation.median:.3f}", f"{labels.median / full:.2f}"]
        for name, (chunks, correlation, labels) in found.items()
    ]
    head = ["", f"chunks in a batch of {BATCH}", "rank correlation", f"label distance, x {FULL}"]
    return table(head, rows)


def make_store(path: Path, samples: int) -> None:
    """A store of one feature with the shape of CLIP's and numbers that mean nothing."""
    spec = StoreSpec(samples, VIEWS, CHUNK, {"clip_image": DIM})
    listed = [Sample(i, f"{i:07d}", f"{i:07d}.jpg", f"{i:07d}.json") for i in range(samples)]
    rng = np.random.default_rng(0)
    block = rng.standard_normal((CHUNK, VIEWS, DIM), np.float32)
    with create(path, spec, {"samples": samples}, listed, take_lock(path)) as writer:
        for chunk in range(spec.chunks):
            of = spec.samples_of(chunk)
            records = [SampleRecord(i, "0" * 64, "0" * 64, 0, ()) for i in of]
            writer.commit_chunk(chunk, {"clip_image": block[: len(of)] + chunk}, records, {})
        writer.finish()


@contextmanager
def a_small_machine() -> Iterator[None]:
    """Inside, the reader believes that a store is larger than memory, and fetches it as such."""
    honest = getattr(mapping, "available_bytes", None)
    setattr(mapping, "available_bytes", lambda: 1)  # noqa: B010  it need not look at memory
    try:
        yield
    finally:
        if honest is None:
            delattr(mapping, "available_bytes")
        else:
            setattr(mapping, "available_bytes", honest)  # noqa: B010


def drop_cache(store: Path) -> None:
    """Takes a store's chunks out of the page cache; they must not be mapped."""
    for file in (store / "clip_image").iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def counters() -> tuple[int, int, int]:
    """Of this process: bytes from the disk, major page faults, minor ones."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    facts = dict(line.split(": ") for line in lines)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int(facts["read_bytes"]), usage.ru_majflt, usage.ru_minflt


class Reading:
    """Epochs of one shuffle, read from a cold or from a warm page cache.

    Attributes:
        moved: bytes from the disk per byte used, of each lap.
        faults: page faults per item, of each lap.
    """

    def __init__(self, store: Path, views: str, shuffle: Shuffle | None, *, cold: bool) -> None:
        self._store, self._views, self._shuffle = store, views, shuffle
        self._piece = WINDOW * CHUNK // BATCH if cold else None  # batches until all is forgotten
        self._epochs = 1 if cold else 20
        # A store that is open keeps its pages from being dropped, so none is between cold laps.
        self._opened = None if cold else self._open()
        self.moved: list[float] = []
        self.faults: list[float] = []

    def _open(self) -> tuple[FeatureDataset, FeatureBatchSampler]:
        dataset = FeatureDataset(self._store, views=self._views)
        return dataset, FeatureBatchSampler(dataset, BATCH, shuffle=self._shuffle)

    def lap(self) -> Lap:
        """Reads epochs; what it takes to open the store does not count."""
        found = np.zeros(6)  # items, bytes used, seconds, and the counters
        state: dict[str, Any] | None = None
        for _ in range(self._epochs):
            while True:
                more, state = self._some(state)
                found += more
                if state["batch"] == 0:
                    break
        self.moved.append(found[3] / found[1])
        self.faults.append((found[4] + found[5]) / found[0])
        return Lap(found[0], found[2])

    def _some(self, state: dict[str, Any] | None) -> tuple[Measured, dict[str, Any]]:
        """Continues an epoch, as far as the page cache holds it."""
        if self._opened is None:
            drop_cache(self._store)
        dataset, batches = self._open() if self._opened is None else self._opened
        if state is not None:
            batches.load_state_dict(state)
        # The wall waits for the disk; without one, CPU time is what neighbours disturb less.
        clock = time.process_time if self._piece is None else time.perf_counter
        items, used = 0, 0
        before, start = np.array(counters()), clock()
        for number, batch in enumerate(batches, start=1):
            rows = dataset.batch(batch)["clip_image"]
            items, used = items + len(rows), used + rows.nbytes
            if number == self._piece:
                break
        seconds = clock() - start
        measured = np.array([items, used, seconds, *(np.array(counters()) - before)])
        return measured, batches.state_dict()


def how_fast(store: Path, views: str, rounds: int, *, cold: bool) -> str:
    """One of the other tables."""
    shuffles = {
        FULL: Shuffle(),
        f"window of {WINDOW}": Shuffle(window=WINDOW),
        # The next window is in memory too.
        f"window of {WINDOW // 2}, read ahead": Shuffle(window=WINDOW // 2, readahead=True),
    }
    made = {name: Reading(store, views, s, cold=cold) for name, s in shuffles.items()}
    contenders: dict[str, Callable[[], Lap]] = {name: of.lap for name, of in made.items()}
    laps = measuring.take_turns(contenders, rounds)
    rows = [
        [
            name,
            str(measuring.rate(of)),
            str(measuring.ratio(of, laps[FULL])),
            f"{Spread.of(made[name].moved).median:.2f}",
            f"{Spread.of(made[name].faults).median:.1f}",
        ]
        for name, of in laps.items()
    ]
    head = [
        "",
        f"items per {'' if cold else 'CPU '}s",
        f"times {FULL}",
        "bytes from disk per byte used",
        "faults per item",
    ]
    return table(head, rows)


def main() -> None:
    """Prints all tables."""
    quick = measuring.options(__doc__).quick
    print(measuring.machine("torch", "numpy"))
    print(f"\nHow random:\n\n{how_random(3 if quick else 9)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="manyviews-shuffle-") as folder:
        store = Path(folder) / "store"
        make_store(store, 2048 if quick else 8192)
        with a_small_machine():
            for views, cold in (("random", True), ("all", True), ("random", False)):
                found = how_fast(store, views, 3 if quick else 7, cold=cold)
                where = f"memory holds {WINDOW} chunks" if cold else "all in memory"
                print(f"\nviews={views!r}, {where}:\n\n{found}", flush=True)


if __name__ == "__main__":
    main()
