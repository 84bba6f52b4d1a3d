"""The table of the side-by-side: rates, ratios, and what each job cost and wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.measuring import Lap, Spread, goal, ratio, table
from benchmarks.observing import Observed
from benchmarks.peer_job import Job, Rows
from benchmarks.peer_jobs import NAIVE, OURS, RENDERED

WITH_RENDERING = f"{RENDERED}, rendering counted"
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


def alike(rows: Rows, ours: Rows) -> str:
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


def report(
    found: Sequence[Job],
    results: Mapping[str, Sequence[Result]],
    rendered: Lap | None,
    failed: Mapping[str, str],
) -> str:
    """The table, and whether the goals are met.

    Args:
        found: the jobs, in the order of the rows.
        results: of each, round by round.
        rendered: views rendered for clip-retrieval, and the seconds that took.
        failed: the jobs without results, with the reason.
    """
    laps = {name: [result.lap for result in of] for name, of in results.items()}
    texts = {job.name for job in found if job.modality == "text"}
    rows = []
    for job in found:
        if job.name in failed:
            laps.pop(job.name)
            rows.append([job.name, f"not measured: {failed[job.name]}", *[""] * (len(HEAD) - 2)])
            continue
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
    ours = laps[OURS]
    peers = {name: of for name, of in laps.items() if name not in (OURS, NAIVE, RENDERED)}
    wanted = {NAIVE: 5.0} if NAIVE in laps else {}
    if peers:
        best = max(peers, key=lambda name: Spread.of(lap.rate for lap in peers[name]).median)
        wanted[best] = 2.0
    return [goal(f"{OURS} / {n}", ratio(ours, laps[n]).median, w) for n, w in wanted.items()]
