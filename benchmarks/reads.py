"""Reading features: manyviews compared with a memmap and with common storage libraries.

Usage:
    python -m benchmarks.reads [--quick] [--folder DIR]

512 random rows, all views of 64 random samples, and a pass over everything: with the files in the
page cache, and with nothing of them in memory when they are opened. Every contender is a process of
its own on one core; each is written in its library's way from the same numbers, which it has to
read back before it is measured. Peers live in environments of their own; ``--quick`` takes those
that are made already, a tenth of the data, and no ``DataLoader``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.environments import FOLDER, Peer
from benchmarks.libraries import LIBRARIES, LOADERS, MEMMAP, OURS, interpreters
from benchmarks.measuring import Contender, Lap, Spread
from benchmarks.reading import ROWS, SAMPLES

VIEWS = 70
# Samples per dimension: 0.55 GB each, and 55 to 73 MB.
FULL = {512: 3840, 768: 2560, 2048: 960}
QUICK = {512: 384, 768: 256, 2048: 96}
PATTERNS = {
    "rows": (ROWS, "512 random rows"),
    "samples": (SAMPLES, "all 70 views of 64 random samples"),
    "scan": (SAMPLES, "one pass in order"),
}
# At most this many times the memmap's time.
GOALS = {"rows": 1.2, "samples": 1.1}


class Race:
    """The contenders' processes, and the files of one dimension that they read."""

    def __init__(
        self, peers: Mapping[str, Peer], folder: Path, shape: tuple[int, int, int]
    ) -> None:
        """Writes the numbers that all others are written from.

        Args:
            peers: per name of ``LIBRARIES`` or ``LOADERS`` its process.
            folder: for all files.
            shape: (N, V, D).
        """
        self._peers, self._folder, self._shape = peers, folder, shape
        self._libraries = {name: (LIBRARIES | LOADERS)[name] for name in peers}
        self._reference = str(folder / "reference.npy")
        n, v, d = shape
        rows = np.lib.format.open_memmap(self._reference, "w+", np.float32, (n * v, d))
        rng = np.random.default_rng(d)
        for start in range(0, n * v, 4096):
            part = rows[start : start + 4096]
            part[:] = rng.standard_normal(part.shape, np.float32)
        rows.flush()

    def ask(self, name: str, do: str, **arguments: Any) -> Any:
        """What one contender answers."""
        return self._peers[name].ask(json.dumps({"do": do, **arguments}))

    def prepare(self, layout: str) -> dict[str, int]:
        """Writes each library's files for a layout, and has all numbers compared.

        Returns:
            Per name the bytes of its files.
        """
        for name, library in self._libraries.items():
            folder = self._folder / library.data
            self.ask(name, "place", folder=str(folder), shape=self._shape, layout=layout)
        folders = {library.data: name for name, library in self._libraries.items()}
        for data, name in folders.items():  # those of one folder read the same files
            shutil.rmtree(self._folder / data, ignore_errors=True)
            self.ask(name, "write", reference=self._reference)
        for name in self._libraries:
            self.ask(name, "check", reference=self._reference)
        return {n: _bytes_of(self._folder / lib.data) for n, lib in self._libraries.items()}

    def warm(self, names: Iterable[str], pattern: str, rounds: int) -> dict[str, list[Lap]]:
        """Laps with everything in memory."""
        contenders = {name: self._contender(name, "warm", pattern, {}) for name in names}
        laps = measuring.take_turns(contenders, rounds)
        self._close()
        return laps

    def cold(
        self, names: Iterable[str], pattern: str, rounds: int
    ) -> tuple[dict[str, list[Lap]], dict[str, list[list[float]]]]:
        """Laps with nothing in memory, and the further facts of each."""
        facts: dict[str, list[list[float]]] = {}
        contenders = {name: self._contender(name, "cold", pattern, facts) for name in names}
        return measuring.take_turns(contenders, rounds), facts

    def _contender(
        self, name: str, do: str, pattern: str, facts: dict[str, list[list[float]]]
    ) -> Contender:
        facts[name] = []

        def lap() -> Lap:
            seed = len(facts[name])  # of the round: the same rows for all
            units, seconds, *more = self.ask(name, do, pattern=pattern, seed=seed)
            facts[name].append(more)
            return Lap(units, seconds)

        return lap

    def _close(self) -> None:
        for name in self._peers:
            self.ask(name, "close")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def warm_table(laps: Mapping[str, Sequence[Lap]], sizes: Mapping[str, int], clock: str) -> str:
    """Rows per second, and the time of a row against the reference, which comes first."""
    reference = next(iter(laps.values()))
    rows = [
        [
            name,
            str(measuring.rate(of)),
            str(measuring.ratio(reference, of)),
            f"{sizes[name] / 1e6:,.0f}",
        ]
        for name, of in laps.items()
    ]
    first = next(iter(laps))
    return measuring.table(["", f"rows per {clock}", f"time / {first}", "MB on disk"], rows)


def cold_table(laps: Mapping[str, Sequence[Lap]], facts: Mapping[str, list[list[float]]]) -> str:
    """Time from opening to the first batch, and how much of the files it brought into memory."""
    rows = []
    for name, of in laps.items():
        opened, resident = (Spread.of(values) for values in zip(*facts[name][1:], strict=True))
        rows.append(
            [
                name,
                str(Spread.of(1e3 * lap.seconds for lap in of)),
                str(measuring.ratio(laps[MEMMAP], of)),
                str(Spread((1e3 * opened.median), 1e3 * opened.low, 1e3 * opened.high)),
                f"{resident.median / 1e6:,.1f}",
            ]
        )
    head = ["", "ms, opening included", "time / memmap", "ms for opening", "MB read from disk"]
    return measuring.table(head, rows)


def goals(pattern: str, laps: Mapping[str, Sequence[Lap]]) -> str:
    """Whether ours is fast enough, and faster than every peer."""
    lines = []
    if pattern in GOALS:
        speed = measuring.ratio(laps[OURS], laps[MEMMAP]).median
        what = f"speed of {OURS} / {MEMMAP} (time at most {GOALS[pattern]} times)"
        lines.append(measuring.goal(what, speed, 1 / GOALS[pattern]))
    peers = [name for name in laps if LIBRARIES[name].peer]
    best = max(peers, key=lambda name: measuring.rate(laps[name]).median)
    speed = measuring.ratio(laps[OURS], laps[best]).median
    lines.append(measuring.goal(f"speed of {OURS} / {best}, the fastest peer", speed, 1.0))
    return "\n".join(lines)


def measure(race: Race, layout: str, *, quick: bool) -> None:
    """Prints the tables of a layout's patterns."""
    sizes = race.prepare(layout)
    names = [name for name in LIBRARIES if name in sizes]
    cold_names = [name for name in names if LIBRARIES[name].cold]
    patterns = {name: what for name, (of, what) in PATTERNS.items() if of == layout}
    # Once dropped, files come back into the page cache in pages of other sizes than those in which
    # they were written, by each reader's way of reading: so nothing is dropped before it was warm.
    for pattern, what in patterns.items():
        laps = race.warm(names, pattern, 3 if quick else 15)
        print(f"\n{what}, warm:\n\n{warm_table(laps, sizes, 'CPU s')}\n\n{goals(pattern, laps)}")
    if layout == ROWS and not quick:
        laps = race.warm(LOADERS, "scan", 9)
        print(f"\nDataLoader, batches of 512 rows:\n\n{warm_table(laps, sizes, 's')}", flush=True)
    for pattern, what in patterns.items():
        laps, facts = race.cold(cold_names, pattern, 2 if quick else 9)
        print(f"\n{what}, cold:\n\n{cold_table(laps, facts)}\n\n{goals(pattern, laps)}", flush=True)


def start(stack: ExitStack, *, quick: bool) -> dict[str, Peer]:
    """Starts the processes of all available libraries; prints which ones are not available."""
    wanted = {n: lib for n, lib in LIBRARIES.items() if lib.quick or not quick}
    wanted |= {} if quick else LOADERS
    pythons, left_out = interpreters(wanted, make=not quick)
    for name, why in left_out.items():
        print(f"{name}: not measured: {why}")
    peers = {}
    for name, python in pythons.items():
        arguments = {"kind": wanted[name].kind, "lap_s": 0.02 if quick else 0.1}
        program = f"benchmarks/peer_{wanted[name].program}.py"
        peers[name] = stack.enter_context(Peer(python, program, arguments))
    return peers


def main() -> None:
    """Prints the tables of each dimension."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default .bench")
    options = parser.parse_args()
    pins = sorted({need for library in LIBRARIES.values() for need in library.needs})
    print(measuring.machine("numpy", "torch", "zarr"), *pins, sep=", ")
    print(
        "Cold: every file was dropped from the page cache, and mincore found at most 1% of it there"
    )
    parent = options.folder or FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        peers = start(stack, quick=options.quick)
        for dim, samples in (QUICK if options.quick else FULL).items():
            print(f"\nD = {dim}: {samples:,} samples, {VIEWS} views, float32", flush=True)
            with tempfile.TemporaryDirectory(prefix="reads-", dir=parent) as folder:
                race = Race(peers, Path(folder), (samples, VIEWS, dim))
                for layout in (ROWS, SAMPLES):
                    measure(race, layout, quick=options.quick)


if __name__ == "__main__":
    main()
