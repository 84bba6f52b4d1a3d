"""Comparison with the alternatives: the same views through the same tiny models.

    python -m benchmarks.peers [--quick] [--faults [JOB ...]]

Each contender is a program in a separate environment, started and watched from outside, on two
cores with one OpenMP thread per process. They take turns. A second table says what each does when
a worker is killed, when inputs are broken, when everything is killed, and when it runs twice.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import peer_faults
from benchmarks.measuring import Lap, machine, parser, table
from benchmarks.peer_job import Job, Rows, Work, run
from benchmarks.peer_jobs import LOADER, NAIVE, OURS, RENDERED, SCRATCH, jobs, rendering
from benchmarks.peer_models import make_models
from benchmarks.peer_recipe import stems
from benchmarks.peer_report import Result, alike, report
from benchmarks.workload import data_folder

VIEWS, FAULT_VIEWS = 70, 8
ROUNDS = 3
SAMPLES, FAULT_SAMPLES = 8, 20  # of a job of speed 1
QUICK = (OURS, NAIVE, LOADER)


def main() -> None:
    """Prints both tables."""
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument(
        "--faults", nargs="*", metavar="JOB", help="the second table alone, of these jobs or of all"
    )
    given = arguments.parse_args()
    quick, only = given.quick, given.faults
    print(machine("torch", "transformers", "numpy"))
    found = [job for job in jobs() if not quick or job.name in QUICK]
    if only:
        found = [job for job in found if job.name in only]
    failed = {}
    for job in found:
        try:
            job.interpreter()  # makes its environment
        except subprocess.CalledProcessError as e:
            failed[job.name] = f"its environment could not be made, exit {e.returncode}"
    with tempfile.TemporaryDirectory(prefix="manyviews-peers-") as folder:
        bench = Bench(Path(folder), failed, quick=quick)
        if only is None:
            print(f"\n{bench.compare(found)}", flush=True)
        if not quick:
            print(f"\n{bench.break_all(found)}", flush=True)
    shutil.rmtree(SCRATCH, ignore_errors=True)


class Bench:
    """Models, data and runs in one folder.

    A peer that fails is left out from then on, and the tables say why. If manyviews fails, all
    ends.
    """

    def __init__(self, folder: Path, failed: dict[str, str], *, quick: bool) -> None:
        """Makes the models; ``failed`` has the jobs that cannot be run, with the reason."""
        self._folder, self._failed, self._quick = folder, failed, quick
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
                if job.name not in self._failed:
                    self._count(number, job, works[job.name], results[job.name])
        return report(found, results, rendered, self._failed)

    def _count(self, number: int, job: Job, work: Work, results: list[Result]) -> None:
        """One round of one job."""
        try:
            results.append(self._round(job, work))
        except RuntimeError as e:
            if job.is_ours:
                raise
            self._failed[job.name] = str(e)
            _tell(self._failed[job.name])
        else:
            _tell(f"round {number + 1}, {job.name}: {results[-1].lap.rate:,.0f} views/s")

    def break_all(self, found: Sequence[Job]) -> str:
        """The second table."""
        rows = []
        for job in (job for job in found if job.name not in self._failed):
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
            if job.name == RENDERED and job.name not in self._failed:
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
            shutil.rmtree(folder)
            said = (seen.output.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"{job.name}: exit code {seen.exit_code}: {said}")
        if job.is_ours:
            self._ours.setdefault(job.modality, rows)
        disk = sum(f.stat().st_size for f in (folder / "out").rglob("*") if f.is_file())
        count = sum(map(len, rows.values()))
        shutil.rmtree(folder)
        views = len(stems(str(work.data))) * work.views
        views *= job.speed if job.name == RENDERED else 1
        return Result(seen, views, count, disk, alike(rows, self._ours[job.modality]))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
