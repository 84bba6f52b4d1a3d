"""The process of every contender of ``benchmarks/reads.py``: it writes, opens, reads and closes.

The program of a peer implements these steps with its library; :func:`serve` does the rest.
It runs in the peers' environments too, so it needs NumPy alone.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import page_cache

BATCH_ROWS, BATCH_SAMPLES = 512, 64
ROWS, SAMPLES = "rows", "samples"
Rows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class Reader(ABC):
    """Stores float32 ``[N, V, D]`` on disk with one library, and reads it.

    Attributes:
        knows_views: False where the library itself draws the views of :meth:`rows`.
        shuffles: :meth:`scan` is an epoch of every sample's view 0, in any order, and nothing else
            is read.
        clock: of warm laps: CPU time of the process, all threads; wall time for
            contenders that have other processes work for them.
        tolerance: how far values may be from the expected ones.
    """

    knows_views = True
    shuffles = False
    tolerance = 0.0
    clock = staticmethod(time.process_time)

    def __init__(self, folder: Path, shape: tuple[int, int, int], layout: str) -> None:
        """Opens the files that :meth:`write` wrote.

        Args:
            folder: holds the contender's files and no others.
            shape: (N, V, D).
            layout: ``rows`` or ``samples``: what an item of the files is, for libraries whose users
                have to choose; it is what the reads to come ask for.
        """
        self.folder, self.shape, self.layout = folder, shape, layout

    @staticmethod
    @abstractmethod
    def write(values: Rows, folder: Path, layout: str) -> None:
        """Writes float32 ``[N, V, D]`` in the library's own way."""

    @abstractmethod
    def rows(self, samples: Indices, views: Indices) -> Rows:
        """One view of each sample: float32 ``[B, D]`` for int64 ``[B]`` and ``[B]``."""

    @abstractmethod
    def all_views(self, samples: Indices) -> Rows:
        """Whole samples: float32 ``[B, V, D]`` for int64 ``[B]``."""

    def scan(self) -> Iterator[Rows]:
        """All samples in their order, float32 ``[64 or fewer, V, D]`` at a time."""
        for start in range(0, self.shape[0], BATCH_SAMPLES):
            yield self.all_views(np.arange(start, min(start + BATCH_SAMPLES, self.shape[0])))

    def close(self) -> None:  # noqa: B027  most need none
        """Lets go of files and mappings that would not go with the last reference."""

    @staticmethod
    def expected(values: Rows) -> Rows:
        """What is read where ``values`` was written, float32 ``[N, V, D]``."""
        return values


def serve(*readers: type[Reader]) -> None:
    """Answers requests until there are no more; the program's argument says which reader does."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # libraries print to standard output
        arguments = json.loads(sys.argv[1])
        (reader,) = (r for r in readers if r.__name__ == arguments["kind"])
        session = Session(reader, arguments["lap_s"])
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(session, request.pop("do"))(**request)
            print(json.dumps(answer), file=answers, flush=True)


class Session:
    """One contender, as ``benchmarks/reads.py`` tells it what to do."""

    def __init__(self, reader: type[Reader], lap_s: float) -> None:
        """Handles a request of the driver.

        Args:
            reader: the library.
            lap_s: about how long a warm lap lasts, in seconds; at least one batch.
        """
        self._kind, self._lap_s = reader, lap_s
        self._reader: Reader | None = None
        self._repeats: dict[str, int] = {}

    def place(self, folder: str, shape: list[int], layout: str) -> None:
        """Says where the next requests find or write their files."""
        self.close()
        self._repeats = {}
        n, v, d = shape
        self._folder, self._shape, self._layout = Path(folder), (n, v, d), layout

    def write(self, reference: str) -> None:
        """Writes the files from an ``.npy`` file ``[N * V, D]``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._kind.write(self._mapped(reference), self._folder, self._layout)

    def check(self, reference: str) -> None:
        """Stops the process unless every pattern reads what was written."""
        expected = self._kind.expected(self._mapped(reference))
        require_equal(self._open(), expected)
        self.close()

    def warm(self, pattern: str, seed: int) -> list[float]:
        """A lap of a later epoch, all pages in memory and mapped: ``[units, seconds]``."""
        if self._reader is None:
            page_cache.load(page_cache.files_of(self._folder))
            self._open()
            page_cache.map_pages(self._folder)
        reader = self._open()
        rng = np.random.default_rng(seed)
        if pattern not in self._repeats:
            read(reader, pattern, rng)
            start = time.perf_counter()
            read(reader, pattern, rng)
            once = time.perf_counter() - start
            self._repeats[pattern] = min(100, max(1, round(self._lap_s / once)))
        units, seconds = 0.0, 0.0
        for _ in range(self._repeats[pattern]):
            done, took = read(reader, pattern, rng)
            units, seconds = units + done, seconds + took
        return [units, seconds]

    def cold(self, pattern: str, seed: int) -> list[float]:
        """The first batch after opening files of which nothing is in memory.

        Returns:
            Units, seconds of wall time for opening and reading, seconds for opening alone, and the
            bytes that are in memory afterwards.
        """
        self.close()
        files = page_cache.files_of(self._folder)
        _drop(files)
        rng = np.random.default_rng(seed)
        start = time.perf_counter()
        reader = self._open()
        opened = time.perf_counter() - start
        start = time.perf_counter()
        units, _ = read(reader, pattern, rng)
        seconds = opened + time.perf_counter() - start
        del reader
        self.close()
        return [units, seconds, opened, float(page_cache.resident_bytes(files))]

    def close(self) -> None:
        """Closes the files, so that nothing of them is mapped."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> Reader:
        if self._reader is None:
            self._reader = self._kind(self._folder, self._shape, self._layout)
        return self._reader

    def _mapped(self, reference: str) -> Rows:
        values: Rows = np.load(reference, mmap_mode="r")
        return values.reshape(self._shape)


def _drop(files: list[Path]) -> None:
    """Takes files out of memory; stops the process where that cannot be done."""
    most = sum(path.stat().st_size for path in files) / 100
    page_cache.drop(files)
    if page_cache.resident_bytes(files) > most:
        gc.collect()  # a reader in a cycle of references still maps them
        page_cache.drop(files)
        left = page_cache.resident_bytes(files)
        if left > most:
            raise SystemExit(f"{left} bytes stay in memory of {files[0]} and {len(files) - 1} more")


def read(reader: Reader, pattern: str, rng: np.random.Generator) -> tuple[int, float]:
    """One batch of a pattern, or one pass: how many rows, and how long it took."""
    n, v, d = reader.shape
    if pattern == "rows":
        samples, views = draw(rng, n, BATCH_ROWS), rng.integers(0, v, BATCH_ROWS)
        start = reader.clock()
        touch(reader.rows(samples, views), (BATCH_ROWS, d))
        return BATCH_ROWS, reader.clock() - start
    if pattern == "samples":
        samples = draw(rng, n, BATCH_SAMPLES)
        start = reader.clock()
        touch(reader.all_views(samples), (BATCH_SAMPLES, v, d))
        return BATCH_SAMPLES * v, reader.clock() - start
    start = reader.clock()
    rows = 0
    for batch in reader.scan():
        touch(batch, batch.shape)
        rows += batch.size // d
    return rows, reader.clock() - start


def draw(rng: np.random.Generator, n: int, count: int) -> Indices:
    """Random samples, each once, as in an epoch; small data sets have not enough of them."""
    return rng.choice(n, count, replace=count > n).astype(np.int64)


def touch(batch: Rows, shape: tuple[int, ...]) -> None:
    """Looks into every half page, for libraries that have not read yet what they return."""
    if batch.dtype != np.float32 or batch.shape != shape:
        raise SystemExit(f"read {batch.dtype} {batch.shape}, expected float32 {shape}")
    batch.reshape(-1)[::512].sum()


def require_equal(reader: Reader, expected: Rows) -> None:
    """Reads by every pattern of the reader's layout and compares.

    Raises:
        SystemExit: other numbers than these came back.
    """
    if reader.shuffles:
        equal = _equal_epoch(reader, expected[:, 0])
    elif reader.layout == ROWS:
        equal = _equal_rows(reader, expected)
    else:
        equal = _equal_samples(reader, expected)
    if not equal:
        raise SystemExit(f"{type(reader).__name__} read other numbers than were written")


def _equal_rows(reader: Reader, expected: Rows) -> bool:
    n, v, _ = reader.shape
    rng = np.random.default_rng(0)
    samples, views = draw(rng, n, BATCH_ROWS), rng.integers(0, v, BATCH_ROWS)
    found = reader.rows(samples, views)
    if reader.knows_views:
        return _equal(reader, found, expected[samples, views])
    pairs = zip(found, expected[samples], strict=True)
    return all(any(_equal(reader, row, view) for view in of_sample) for row, of_sample in pairs)


def _equal_samples(reader: Reader, expected: Rows) -> bool:
    samples = draw(np.random.default_rng(0), len(expected), BATCH_SAMPLES)
    equal, at = _equal(reader, reader.all_views(samples), expected[samples]), 0
    for batch in reader.scan():
        equal = equal and _equal(reader, batch, expected[at : at + len(batch)])
        at += len(batch)
    return equal and at == len(expected)


def _equal_epoch(reader: Reader, expected: Rows) -> bool:
    found = np.concatenate(list(reader.scan()))
    return sorted(row.tobytes() for row in found) == sorted(row.tobytes() for row in expected)


def _equal(reader: Reader, found: Rows, expected: Rows) -> bool:
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max(initial=0.0) <= reader.tolerance
    )
