"""How long a build will take: a trial of it on a few of its samples, and what follows from that.

The trial is the build's own main loop, with its producers, backbones, batches and commits, the
latter into files without a name on the store's file system. It makes three chunks of k samples.
Between the last sample of the second one and that of the third lies what every chunk of a build
takes: the third one's images, and the texts of the first that were left. The rest happens once:
producers start, the queue fills, and the last chunk is finished and committed. A build of n
samples so takes

    t + (n - 3k) * (e3 - e2) / k

where t is the seconds of the whole trial, and e2 and e3 are when those two samples were taken.

More views for a store are tried as what they are: on a small store that has views already.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from consumers.plan import Plan
from consumers.resume.extension import Extension
from featurestore.errors import InterruptedBuildError
from featurestore.records import SampleRecord
from featurestore.samples import SampleList
from featurestore.storage.store import FeatureStore
from featurestore.storage.unnamed import UnnamedStore
from featurestore.storage.writer import StoreWriter
from featurestore.wording import amount
from manyviews.operations.check.findings import Group
from manyviews.operations.check.reading import evenly

if TYPE_CHECKING:
    from consumers.main_loop import BuildReport

# A first trial of three samples tells how many the second may have.
_AIM_S = 10.0
# Where the trial's store would be, beside the real one; nothing is ever created there.
_NOWHERE = ".manyviews-check-trial"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial measured.

    Attributes:
        samples: how many it made, in three chunks; fewer where the data set has no more.
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
        aim_s: about how long it may take; a very slow build is tried for three samples even so.

    Raises:
        InterruptedBuildError: a signal ended it.
        ManyViewsError: what a build of these samples would raise.
    """
    total = len(plan.decided.found.samples)
    short = _measure(plan, folder, 1)
    # They are made side by side, so the time between them says nothing of slow producers.
    slow_s = short.total_s / (short.samples * plan.workers)
    fitting = int(aim_s / (3 * max(short.sample_s, slow_s, 1e-3)))
    if short.sample_s < slow_s / 2:
        fitting = max(fitting, plan.workers)
    chunk = min(fitting, plan.spec.chunk, total // 4)
    return _measure(plan, folder, chunk) if chunk > 1 else short


def _measure(plan: Plan, folder: Path | None, chunk: int) -> Trial:
    """Builds three chunks of so many samples."""
    chosen = evenly(plan.decided.found.samples, 3 * chunk)
    marks: list[tuple[float, float]] = []

    def note(event: str, **facts: Any) -> None:
        if event == "sample":
            marks.append((time.monotonic(), facts["waited_s"]))

    place = Path(tempfile.gettempdir()) if folder is None else folder
    small = _reduced(plan, [s.index for s in chosen], chunk, place / _NOWHERE)
    total_s = _build(small, place, note).seconds
    count = len(marks)
    if count < 3:
        return Trial(count, total_s, total_s / count, marks[-1][1] / total_s)
    (e2, w2), (e3, w3) = marks[2 * chunk - 1], marks[-1]
    elapsed = max(e3 - e2, 1e-6)
    return Trial(count, total_s, elapsed / (count - 2 * chunk), (w3 - w2) / elapsed)


def _reduced(plan: Plan, indices: list[int], chunk: int, store: Path) -> Plan:
    """The same plan for a few samples, which get the first places, and a store of their own."""
    samples = SampleList.of(plan.decided.found.samples[i] for i in indices)
    # New features and new samples take as long by themselves; new views need those of the store.
    wanted = plan.decided.wanted
    if wanted is not None:
        wanted = _TrialViews("views", wanted.base, None, chunk) if wanted.kind == "views" else None
    decided = replace(
        plan.decided,
        config=replace(plan.decided.config, store=store, bad_sample="placeholder"),
        found=replace(plan.decided.found, samples=samples),
        stats=plan.decided.stats[indices],
        confirmed={},
        remade=(),
        wanted=wanted,
    )
    spec = replace(plan.spec, samples=len(samples), chunk=chunk)
    return replace(plan, decided=decided, spec=spec)


@dataclass(frozen=True, slots=True)
class _TrialViews(Extension):
    """More views for a trial's samples, which the store does not have at these places.

    Attributes:
        chunk: samples of a chunk of the trial.
    """

    chunk: int

    def rows_before(self, feature: str, chunk: int) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Rows of the store's first chunk, for every chunk: what a row holds matters to a codec."""
        return self.base.read_chunk(feature, 0)[: self.chunk]

    def changed_before(self, chunk: int) -> Mapping[str, str]:  # noqa: ARG002
        """Nothing: no chunk of the store is this one."""
        return {}

    def require_same_inputs(self, record: SampleRecord) -> None:
        """Does nothing: the store has other samples there."""

    def finish(self, writer: StoreWriter) -> FeatureStore:
        """The trial's own store: nothing is put in place."""
        return writer


def _build(plan: Plan, folder: Path, tell: Callable[..., None]) -> BuildReport:
    from consumers import main_loop  # loads torch

    writer = UnnamedStore(folder, plan.spec, plan.fingerprint, plan.decided.found.samples)
    try:
        return main_loop.run_plan(plan, writer, tell)
    except InterruptedBuildError as error:
        raise InterruptedBuildError(
            error.signum, "The check was interrupted; nothing was changed."
        ) from None


def forecast_group(plan: Plan, trial: Trial, todo: int) -> Group:
    """What the trial says of the whole build.

    Args:
        plan: the build.
        trial: a trial of it.
        todo: the samples that it makes.
    """
    group = Group("forecast")
    views = plan.spec.views - plan.job.first_view
    rate = views / trial.sample_s
    seconds = trial.seconds(todo) if todo else 0.0
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
    group.ok(
        "tried",
        f"{amount(trial.samples, 'sample')}, evenly spread, "
        f"with {amount(plan.workers, 'producer')}",
    )
    group.ok("rate", f"{rate:,.0f} views/s of every feature, {1 / trial.sample_s:.2f} samples/s")
    text = f"{trial.bottleneck}; the backbones wait {trial.waited:.0%} of the time"
    if trial.bottleneck == "producers" and alone is not None:
        text += (
            f", alone they could do {alone:,.0f} views/s: give more --workers, if there are CPUs"
        )
    group.ok("slower side", text)
    group.ok(
        "duration", f"{duration(seconds)} for {amount(todo, 'sample')}, after loading (an estimate)"
    )
    return group


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 120:
        return amount(round(seconds), "second")
    if seconds < 7200:
        return amount(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"
