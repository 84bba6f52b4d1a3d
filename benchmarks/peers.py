"""Side by side with what else one could use: the same views through the same tiny models.

    python -m benchmarks.peers [--quick]

Each contender is a program in an environment of its own, started and watched from outside, on two
cores with one OpenMP thread per process. They take turns. A second table says what each does when
a worker is killed, when inputs are broken, when everything is killed, and when it runs twice.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import peer_faults
from benchmarks.measuring import Lap, Spread, goal, machine, options, ratio, table
from benchmarks.observing import Observed
from benchmarks.peer_jobs import Job, Rows, Work, jobs, rendering, run
from benchmarks.peer_models import make_models
from benchmarks.workload import data_folder

VIEWS, FAULT_VIEWS = 70, 24
ROUNDS = 3
SAMPLES, FAULT_SAMPLES = 10, 8  # of a job of speed 1
QUICK = ("manyviews", "naive script", "PyTorch DataLoader, 2 workers")
RENDERED, WITH_RENDERING = "clip-retrieval 2.45", "clip-retrieval 2.45, rendering counted"
HEAD = (
    "",
    "views",
    "views/s",
    "manyviews is times as fast",
    "start-up, s",
    "CPU s per 1,000 views",
    "peak memory, MiB",
    "bytes on disk",
    "rows written",
    "rows against manyviews'",
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a job did in one round.

    Attributes:
        seen: from outside.
        views: that it was given.
        rows: that it wrote.
        disk: bytes of its output.
        alike: how its rows compare with ours.
    """

    seen: Observed
    views: int
    rows: int
    disk: int
    alike: str

    @property
    def lap(self) -> Lap:
        """Views and the seconds in which they were made, start-up left out."""
        return Lap(self.views, self.seen.warm_s)


def main() -> None:
    """Prints both tables."""
    quick = options(__doc__.partition("\n")[0]).quick
    print(machine("torch", "transformers", "numpy"))
    found = [job for job in jobs() if not quick or job.name in QUICK]
    for job in found:
        job.interpreter()  # makes its environment
    with tempfile.TemporaryDirectory(prefix="manyviews-peers-") as folder:
        bench = Bench(Path(folder), quick=quick)
        print(f"\n{bench.compare(found)}", flush=True)
        if not quick:
            print(f"\n{bench.break_all(found)}", flush=True)


class Bench:
    """Models, data and runs in one folder."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        self._ours: dict[str, Rows] = {}
        make_models(folder / "models")

    def compare(self, found: Sequence[Job]) -> str:
        """The first table, and whether the goals are met."""
        samples, rounds, views = (2, 1, 24) if self._quick else (SAMPLES, ROUNDS, VIEWS)
        works = {job.name: self._work(job, samples, views) for job in found}
        rendered = self._render(found, works, samples)
        for job in found:
            if job.is_ours:  # does not count; the rows that the others' are compared with
                self._round(job, works[job.name])
        results: dict[str, list[Result]] = {job.name: [] for job in found}
        for number in range(rounds):
            first = number % len(found)
            for job in (*found[first:], *found[:first]):
                results[job.name].append(self._round(job, works[job.name]))
                lap = results[job.name][-1].lap
                _tell(f"round {number + 1}, {job.name}: {lap.rate:,.0f} views/s")
        return _report(found, results, rendered)

    def break_all(self, found: Sequence[Job]) -> str:
        """The second table."""
        rows = []
        for job in found:
            work = self._work(job, FAULT_SAMPLES, FAULT_VIEWS)
            damaged = self._folder / "damaged"
            if job.name == RENDERED:
                self._render([job], {job.name: work}, FAULT_SAMPLES)
                broken = peer_faults.damage_shards(work, damaged)
            else:
                broken = peer_faults.damage(work, damaged, job.modality)
            rows.append(peer_faults.cells(job, work, broken, self._folder / "faults"))
            shutil.rmtree(damaged)
            _tell("; ".join(rows[-1]))
        return table(peer_faults.HEAD, rows)

    def _work(self, job: Job, samples: int, views: int) -> Work:
        """So many samples that every job takes about as long."""
        count = samples if job.name == RENDERED else samples * job.speed
        data = data_folder(self._folder, count)
        shards = self._folder / f"shards-{samples}-{views}"
        return Work(data, self._folder / "models", shards, views)

    def _render(self, found: Sequence[Job], works: Mapping[str, Work], samples: int) -> Lap | None:
        """Renders the views for clip-retrieval, each as often as makes its run long enough."""
        for job in found:
            if job.name == RENDERED:
                work = works[job.name]
                seen = run(rendering(job.speed), work, self._folder / "render")
                (self._folder / "render/out").rename(work.shards)
                shutil.rmtree(self._folder / "render")
                if seen.exit_code == 0:
                    return Lap(samples * work.views, seen.warm_s)
                raise RuntimeError(f"views could not be rendered:\n{seen.output}")
        return None

    def _round(self, job: Job, work: Work) -> Result:
        folder = self._folder / "run"
        seen = run(job, work, folder)
        rows = job.rows(work, folder)
        if seen.exit_code != 0 or not rows:
            raise RuntimeError(f"{job.name} ended with exit code {seen.exit_code}:\n{seen.output}")
        if job.is_ours:
            self._ours.setdefault(job.modality, rows)
        disk = sum(f.stat().st_size for f in (folder / "out").rglob("*") if f.is_file())
        count = sum(map(len, rows.values()))
        shutil.rmtree(folder)
        return Result(seen, count, count, disk, _alike(rows, self._ours[job.modality]))


def _alike(rows: Rows, ours: Rows) -> str:
    """The largest difference of a number; the smallest cosine where rows are of single files."""
    common = rows.keys() & ours.keys()
    if common:
        worst = max(float(np.abs(rows[key] - ours[key]).max()) for key in common)
        return f"within {worst:.0e}" if worst > 0 else "equal"
    cosines = []
    for key, row in rows.items():
        stem, _, view = key.split("-")
        other = ours[stem][int(view)]
        cosines.append(float(row[0] @ other / np.linalg.norm(row[0]) / np.linalg.norm(other)))
    return f"cosine {np.median(cosines):.3f} ({min(cosines):.3f} at least)"


def _report(
    found: Sequence[Job], results: Mapping[str, Sequence[Result]], rendered: Lap | None
) -> str:
    laps = {name: [result.lap for result in of] for name, of in results.items()}
    texts = {job.name for job in found if job.modality == "text"}
    rows = []
    for job in found:
        ours = laps[
            next(other.name for other in found if other.is_ours and other.modality == job.modality)
        ]
        rows.append([job.name, *_cells(results[job.name], ours, laps[job.name])])
        if job.name == RENDERED and rendered is not None:
            slow = rendered.seconds / rendered.units
            laps[WITH_RENDERING] = [
                Lap(lap.units, lap.seconds + slow * lap.units) for lap in laps[RENDERED]
            ]
            cells = _cells(results[RENDERED], ours, laps[WITH_RENDERING])
            # Of rendering nothing but its time was measured.
            rows.append([WITH_RENDERING, *cells[:3], *[""] * (len(cells) - 3)])
    images = {name: of for name, of in laps.items() if name not in texts}
    return "\n\n".join([table(HEAD, rows), "\n".join(_goals(images))])


def _cells(results: Sequence[Result], ours: Sequence[Lap], laps: Sequence[Lap]) -> list[str]:
    last = results[-1]
    return [
        f"{last.views:,}",
        str(Spread.of(lap.rate for lap in laps)),
        str(ratio(ours, laps)),
        f"{Spread.of(r.seen.start_s for r in results).median:.1f}",
        str(Spread.of(1e3 * r.seen.warm_cpu_s / r.views for r in results)),
        f"{max(r.seen.peak_bytes for r in results) / 2**20:,.0f}",
        f"{last.disk:,}",
        f"{last.rows:,}",
        last.alike,
    ]


def _goals(laps: Mapping[str, Sequence[Lap]]) -> list[str]:
    """Against the naive script, and against the best that makes the views itself."""
    ours, naive, *others = (name for name in laps if name != RENDERED)
    lines = [goal(f"{ours} / {naive}", ratio(laps[ours], laps[naive]).median, 5.0)]
    best = max(others, key=lambda name: Spread.of(lap.rate for lap in laps[name]).median)
    return [*lines, goal(f"{ours} / {best}", ratio(laps[ours], laps[best]).median, 2.0)]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
