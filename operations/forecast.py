"""How long a build will take: a trial of it on a few of its samples, and what follows from that.

The trial is the build's own main loop, with its producers, backbones, batches and commits, the
latter into files without a name on the store's file system. It makes two chunks of k samples.
Between the last sample of the first one and that of the second lies what every chunk of a build
takes; the rest happens once: producers start, the queue fills, and the last chunk is finished and
committed. A build of n samples so takes

    t + (n - 2k) * (e2 - e1) / k

where t is the seconds of the whole trial, and e1 and e2 are when those two samples were embedded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consumers.main_loop import BuildReport, run_plan
from consumers.plan import Plan
from featurestore.errors import InterruptedBuildError
from featurestore.samples import SampleList
from featurestore.unnamed import UnnamedStore
from operations.findings import Group
from operations.reading import evenly

# A first trial of two samples tells how many the second may have.
_AIM_S = 10.0
# Where the trial's store would be, beside the real one; nothing is ever created there.
_NOWHERE = ".manyviews-check-trial"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial measured.

    Attributes:
        samples: how many it made, in two chunks; one where the data set has no more.
        total_s: seconds of all of it, the producers' start included.
        sample_s: seconds per sample in the middle of it.
        waited: of these, the share in which the backbones waited for producers, 0 to 1.
    """

    samples: int
    total_s: float
    sample_s: float
    waited: float

    def seconds(self, samples: int) -> float:
        """Predicted seconds of a build of so many samples, without loading the backbones."""
        return max(0.0, self.total_s + (samples - self.samples) * self.sample_s)

    @property
    def bottleneck(self) -> str:
        """``producers`` where the backbones wait for them most of the time, else ``backbones``."""
        return "producers" if self.waited > 0.5 else "backbones"


def run_trial(plan: Plan, folder: Path | None, aim_s: float = _AIM_S) -> Trial:
    """Builds a few of a plan's samples, and throws the result away.

    Args:
        plan: a build that may begin.
        folder: whose file system is written to; None for the system's temporary folder.
        aim_s: about how long it may take; a very slow build is tried for two samples all the same.

    Raises:
        InterruptedBuildError: a signal ended it.
        ManyViewsError: what a build of these samples would raise.
    """
    total = len(plan.found.samples)
    short = _measure(plan, folder, 1)
    # Two samples are made side by side, so the time between them says nothing of slow producers.
    slow_s = short.total_s / (short.samples * plan.workers)
    fitting = int(aim_s / (2 * max(short.sample_s, slow_s, 1e-3)))
    if short.sample_s < slow_s / 2:
        fitting = max(fitting, plan.workers)
    chunk = min(fitting, plan.spec.chunk, total // 3)
    return _measure(plan, folder, chunk) if chunk > 1 else short


def _measure(plan: Plan, folder: Path | None, chunk: int) -> Trial:
    """Builds two chunks of so many samples."""
    chosen = evenly(plan.found.samples, 2 * chunk)
    marks: list[tuple[float, float]] = []

    def note(event: str, **facts: Any) -> None:
        if event == "sample":
            marks.append((time.monotonic(), facts["waited_s"]))

    place = Path(tempfile.gettempdir()) if folder is None else folder
    small = _reduced(plan, [s.index for s in chosen], chunk, place / _NOWHERE)
    total_s = _build(small, place, note).seconds
    if len(marks) == 1:
        return Trial(1, total_s, total_s, marks[0][1] / total_s)
    (e1, w1), (e2, w2) = marks[chunk - 1], marks[-1]
    elapsed = max(e2 - e1, 1e-6)
    return Trial(len(chosen), total_s, elapsed / (len(chosen) - chunk), (w2 - w1) / elapsed)


def _reduced(plan: Plan, indices: list[int], chunk: int, store: Path) -> Plan:
    """The same plan for a few samples, which get the first places, and a store of their own."""
    samples = SampleList.of(plan.found.samples[i] for i in indices)
    return replace(
        plan,
        config=replace(plan.config, store=store, bad_sample="placeholder"),
        found=replace(plan.found, samples=samples),
        stats=plan.stats[indices],
        confirmed={},
        remade=(),
        spec=replace(plan.spec, samples=len(samples), chunk=chunk),
        wanted=None,
    )


def _build(plan: Plan, folder: Path, tell: Callable[..., None]) -> BuildReport:
    writer = UnnamedStore(folder, plan.spec, plan.fingerprint, plan.found.samples)
    try:
        return run_plan(plan, writer, tell)
    except InterruptedBuildError as error:
        raise InterruptedBuildError(
            error.signum, "The check was interrupted; nothing was changed."
        ) from None


def forecast_group(plan: Plan, trial: Trial, todo: int, share: float = 1.0) -> Group:
    """What the trial says of the whole build.

    Args:
        plan: the build.
        trial: a trial of it.
        todo: the samples that it makes.
        share: the part of their views that it makes.
    """
    group = Group("forecast")
    views = plan.spec.views
    rate = views / trial.sample_s
    seconds = share * trial.seconds(todo) if todo else 0.0
    alone = rate / (1 - trial.waited) if trial.waited < 0.99 else None
    group.facts = {
        "trial_samples": trial.samples,
        "samples": todo,
        "views_per_s": round(rate, 3),
        "samples_per_s": round(1 / trial.sample_s, 4),
        "seconds": round(seconds, 3),
        "hours": round(seconds / 3600, 4),
        "bottleneck": trial.bottleneck,
        "waited_share": round(trial.waited, 4),
        "workers": plan.workers,
    }
    group.ok("tried", f"{trial.samples:,} samples, evenly spread, with {plan.workers} producers")
    group.ok("rate", f"{rate:,.0f} views/s of every feature, {1 / trial.sample_s:.2f} samples/s")
    text = f"{trial.bottleneck}; the backbones wait {trial.waited:.0%} of the time"
    if trial.bottleneck == "producers" and alone is not None:
        text += (
            f", alone they could do {alone:,.0f} views/s: give more --workers, if there are CPUs"
        )
    group.ok("slower side", text)
    group.ok("duration", f"{duration(seconds)} for {todo:,} samples, after loading (an estimate)")
    return group


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
