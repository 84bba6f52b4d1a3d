"""Several workers of one build, with simulated devices, against one of them.

    python -m benchmarks.workers [--quick] [--only scaling|records]

A simulated device is a backbone that computes an exact function and sleeps, so that eight of them
fit on two cores: what is measured is the order of chunks, the wait at the end, and the cost of
records. Every worker is a real process with a producer of its own, on one store. All of them begin
at the moment when the last one has its first sample; rates count from then to the last commit. What
a simulation of the same workers says is printed before they run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measuring import Spread, goal, machine, parser, table
from benchmarks.simulated_workers import Simulation
from benchmarks.worker_tasks import Outcome, committed_in, opened_in, run_workers
from benchmarks.workload import data_folder

DEVICES = 8
# Samples per chunk of the measured builds.
CHUNK = 4


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers, and what is expected of them.

    Attributes:
        name: in the table.
        speeds: of the devices; 1 is that of the device that builds alone.
        chunks: number of chunks of the store, for each worker.
        dies: whether the first worker is killed when half of the chunks are committed.
        goal: least rate, as a multiple of the sum of the speeds of the living devices.
    """

    name: str
    speeds: tuple[float, ...]
    chunks: int
    dies: bool
    goal: float

    @property
    def living(self) -> float:
        """The sum of the speeds of the devices that the rate is compared with."""
        return sum(self.speeds[1:] if self.dies else self.speeds)


def fleets(chunks: int) -> list[Fleet]:
    """What is measured, with ``chunks`` chunks for each worker, or twice as many."""
    equal = (1.0,) * DEVICES
    return [
        Fleet("8 equal devices", equal, 2 * chunks, dies=False, goal=0.95),
        Fleet("one of 8 twice as slow", (0.5, *equal[1:]), chunks, dies=False, goal=0.92),
        Fleet("one of 8 killed at half", equal, chunks, dies=True, goal=0.90),
    ]


def main() -> None:
    """Prints the tables."""
    parts = {"scaling": _scaling, "records": _records}
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--only", choices=parts, help="one of the measurements")
    given = arguments.parse_args()
    print(machine("torch", "numpy"))
    with tempfile.TemporaryDirectory(prefix="manyviews-workers-") as folder:
        for name, part in parts.items():
            if given.only in (None, name):
                part(Path(folder), quick=given.quick)


def _scaling(work: Path, *, quick: bool) -> None:
    """Rates of several devices, as multiples of one, and how many chunks were built twice."""
    chunk_s = 0.4 if quick else 1.0
    found = fleets(25)
    rows = []
    print("predicted by the simulation:")
    for fleet in found:
        efficiency, twice = predicted(fleet, range(12))
        print(f"  {fleet.name}: {efficiency:.3f} of the ideal, {twice:.1%} of the chunks twice")
    alone = measured(work, (1.0,), found[1].chunks, chunk_s, dies=False).rate
    for fleet in found:
        outcome = measured(work, fleet.speeds, fleet.chunks, chunk_s, dies=fleet.dies)
        efficiency = outcome.rate / (fleet.living * alone)
        rows.append(
            [
                fleet.name,
                str(fleet.chunks),
                f"{outcome.rate / alone:.2f}",
                f"{efficiency:.3f}",
                f"{outcome.twice:.1%}",
            ]
        )
        print(goal(fleet.name, efficiency, fleet.goal))
        if len(rows) == 1:
            met = "met" if outcome.twice <= 0.02 else "MISSED"
            print(f"{fleet.name}: {outcome.twice:.1%} of the chunks twice, goal 2.0%: {met}")
    head = ["devices", "chunks a worker", "times one", "of the ideal", "chunks built twice"]
    print(table(head, rows))


def predicted(fleet: Fleet, seeds: Iterable[int]) -> tuple[float, float]:
    """The share of the ideal rate, and of chunks that are built twice, by the simulation."""
    chunks = fleet.chunks * len(fleet.speeds)
    half_s = chunks / 2 / sum(fleet.speeds)
    shares, twice = [], []
    for seed in seeds:
        dies = {0: half_s} if fleet.dies else {}
        run = Simulation([1 / speed for speed in fleet.speeds], chunks, dies, seed).run()
        if fleet.dies:
            shares.append(chunks / 2 / (run.end_s - half_s) / fleet.living)
        else:
            shares.append(chunks / run.end_s / fleet.living)
        twice.append(run.duplicates)
    return median(shares), median(twice)


def measured(
    work: Path, speeds: tuple[float, ...], chunks: int, chunk_s: float, *, dies: bool
) -> Outcome:
    """A build by several workers."""
    data = data_folder(work, CHUNK * chunks * len(speeds))
    seconds = [chunk_s / speed for speed in speeds]
    kill_at = chunks * len(speeds) // 2 if dies else None
    return run_workers(work, data, seconds, chunk=CHUNK, kill_at=kill_at)


def _records(work: Path, *, quick: bool) -> None:
    """What a record costs beside a line of the ledger, and how long 2,000 of them take to read."""
    rounds = 3 if quick else 9
    laps = [committed_in(work / f"commits-{number}", 100) for number in range(rounds)]
    ratio = Spread.of(record / line for line, record in laps)
    print(f"a record to a line of the ledger: {ratio} times, goal 2")
    print(f"a record: {1e3 * median(record for _, record in laps):.2f} ms")
    seconds = Spread.of(opened_in(work / f"opened-{n}", 2000) for n in range(rounds))
    print(f"a store of 2,000 records opened in {seconds} s, goal 1")


if __name__ == "__main__":
    main()
