"""Predict the duration of a build from a trial build of a few of its samples.

The trial runs the build's main loop, with the same producers, backbones, batches and commits; it
commits to unnamed files on the store's file system. It builds three chunks of k samples. The time
between the last sample of the second chunk and the last sample of the third is the time that every
chunk of a build takes: the images of that chunk, and the remaining texts of an earlier one. All
other work happens once: producers start, the queue fills, and the last chunk is finished and
committed. The predicted duration of a build of n samples is therefore

    t + (n - 3k) * (e3 - e2) / k

where t is the duration of the whole trial in seconds, and e2 and e3 are the times at which those
two samples were taken from the queue.

An extension by more views is tried as an extension: of a small store that already has views.
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
from manyviews.operations.check.spread import Spread

if TYPE_CHECKING:
    from consumers.build_report import BuildReport

# Seconds that the trial should take; a first one of three samples sets the size of the second.
_AIM_S = 10.0
# The path of the trial's store in messages; no file of that name is ever created.
_NOWHERE = ".manyviews-check-trial"


@dataclass(frozen=True, slots=True)
class Trial:
    """Measurements of a trial.

    Attributes:
        samples: number of samples built, in three chunks; fewer if the data set has fewer.
        total_s: duration of the whole trial in seconds, including the start of the producers.
        sample_s: seconds per sample between the second chunk and the third.
        waited: share of that time in which the backbones waited for producers, 0 to 1.
        producer_s: seconds of a CPU that a producer needs for a sample; 0 if not known.
    """

    samples: int
    total_s: float
    sample_s: float
    waited: float
    producer_s: float = 0.0

    @property
    def backbones_per_s(self) -> float | None:
        """Samples per second of one device that never waits; None if not known."""
        return 1 / (self.sample_s * (1 - self.waited)) if self.waited < 0.99 else None

    def producers_per_s(self, producers: int) -> float | None:
        """Samples per second that this many producers deliver; None if not known."""
        if self.bottleneck == "producers":
            return 1 / self.sample_s
        return producers / self.producer_s if self.producer_s else None

    def seconds_at(self, rate: float, samples: int) -> float:
        """Predicted seconds of a build of ``samples`` samples at ``rate`` samples per second."""
        return max(0.0, self.total_s - self.samples * self.sample_s) + samples / rate

    def seconds(self, samples: int) -> float:
        """Predicted seconds of a build of ``samples`` samples, without loading the backbones."""
        return max(0.0, self.total_s + (samples - self.samples) * self.sample_s)

    @property
    def bottleneck(self) -> str:
        """``producers`` if the backbones wait for them most of the time, else ``backbones``."""
        return "producers" if self.waited > 0.5 else "backbones"


def run_trial(plan: Plan, folder: Path | None, aim_s: float = _AIM_S) -> Trial:
    """Builds a few of a plan's samples, and discards the result.

    Args:
        plan: the plan of the build.
        folder: a folder on the file system to write to; None for the system's temporary folder.
        aim_s: approximate duration in seconds; at least three samples are built in any case.

    Raises:
        InterruptedBuildError: a signal ended the trial.
        ManyViewsError: the error that a build of these samples would raise.
    """
    total = len(plan.decided.found.samples)
    before = _producers_s()
    short = _measure(plan, folder, 1)
    between = _producers_s()
    # The three samples are produced in parallel: times between them do not show slow producers.
    slow_s = short.total_s / (short.samples * plan.producers)
    fitting = int(aim_s / (3 * max(short.sample_s, slow_s, 1e-3)))
    if short.sample_s < slow_s / 2:
        fitting = max(fitting, plan.producers)
    chunk = min(fitting, plan.spec.chunk, total // 4)
    if chunk <= 1:
        return short
    trial = _measure(plan, folder, chunk)
    # Both trials start the producers, which takes as long in both.
    more_s = (_producers_s() - between) - (between - before)
    return replace(trial, producer_s=max(0.0, more_s) / (trial.samples - short.samples))


def _producers_s() -> float:
    """Seconds of CPU time of all producers that have ended."""
    import resource  # Windows has no such module, and no builds

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure(plan: Plan, folder: Path | None, chunk: int) -> Trial:
    """Builds three chunks of ``chunk`` samples each."""
    chosen = evenly(plan.decided.found.samples, 3 * chunk)
    marks: list[tuple[float, float]] = []

    def on_event(event: str, **facts: Any) -> None:
        if event == "sample":
            marks.append((time.monotonic(), facts["waited_s"]))

    place = Path(tempfile.gettempdir()) if folder is None else folder
    small = _reduced(plan, [s.index for s in chosen], chunk, place / _NOWHERE)
    total_s = _build(small, place, on_event).seconds
    count = len(marks)
    if count < 3:
        return Trial(count, total_s, total_s / count, marks[-1][1] / total_s)
    (e2, w2), (e3, w3) = marks[2 * chunk - 1], marks[-1]
    elapsed = max(e3 - e2, 1e-6)
    return Trial(count, total_s, elapsed / (count - 2 * chunk), (w3 - w2) / elapsed)


def _reduced(plan: Plan, indices: list[int], chunk: int, store: Path) -> Plan:
    """The same plan for a few samples, renumbered from 0, and for a separate store."""
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
    """An extension by more views for a trial, whose samples are not those of the store's chunks.

    Attributes:
        chunk: samples per chunk of the trial.
    """

    chunk: int

    def rows_before(self, feature: str, chunk: int) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Rows of the store's first chunk, for every chunk; a codec's speed depends on them."""
        return self.base.read_chunk(feature, 0)[: self.chunk]

    def changed_before(self, chunk: int) -> Mapping[str, str]:  # noqa: ARG002
        """Nothing: no chunk of the store corresponds to this one."""
        return {}

    def require_same_inputs(self, record: SampleRecord) -> None:
        """Does nothing: the store has other samples at these positions."""

    def finish(self, writer: StoreWriter) -> FeatureStore:
        """Returns the trial's store; nothing is moved into the real one."""
        return writer


def _build(plan: Plan, folder: Path, on_event: Callable[..., None]) -> BuildReport:
    from consumers import main_loop  # loads torch

    writer = UnnamedStore(folder, plan.spec, plan.fingerprint, plan.decided.found.samples)
    try:
        return main_loop.run_plan(plan, writer, on_event)
    except InterruptedBuildError as error:
        raise InterruptedBuildError(
            error.signum, "The check was interrupted; nothing was changed."
        ) from None


def spread_into(group: Group, trial: Trial, spread: Spread, producers: int, todo: int) -> None:
    """Adds the prediction for several devices or machines, which replaces that for one device.

    Args:
        group: the group to add to.
        trial: the measurements of a trial on one device.
        spread: the devices.
        producers: number of producer processes of a machine.
        todo: number of samples to build.
    """
    backbones, produced = trial.backbones_per_s, trial.producers_per_s(producers)
    rate, side = spread.rates(backbones, produced)
    seconds = trial.seconds_at(rate, todo) if todo and rate else 0.0
    group.facts |= {
        "devices": list(spread.devices),
        "machines": spread.machines,
        "device_samples_per_s": None if backbones is None else round(backbones, 4),
        "producers_samples_per_s": None if produced is None else round(produced, 4),
        "samples_per_s": round(rate, 4),
        "views_per_s": round(rate * group.facts["views_per_s"] * trial.sample_s, 3),
        "seconds": round(seconds, 3),
        "hours": round(seconds / 3600, 4),
        "bottleneck": side,
    }
    place = "this machine" if spread.machines == 1 else amount(spread.machines, "machine")
    group.ok(
        "devices", f"{', '.join(spread.devices)} of {place}: {amount(spread.workers, 'worker')}"
    )
    text = f"{rate:.2f} samples/s together, limited by the {side}"
    if produced is not None:
        text += f"; {amount(producers, 'producer')} of a machine deliver {produced:.2f} samples/s"
    group.ok("together", text)
    group.ok("duration", f"{duration(seconds)} with all of them (an estimate)")


def forecast_group(plan: Plan, trial: Trial, todo: int) -> Group:
    """The prediction for the whole build.

    Args:
        plan: the plan of the build.
        trial: the measurements of its trial.
        todo: number of samples to build.
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
        "producers": plan.producers,
    }
    group.ok(
        "tried",
        f"{amount(trial.samples, 'sample')}, evenly spread, "
        f"with {amount(plan.producers, 'producer')}",
    )
    group.ok("rate", f"{rate:,.0f} views/s of every feature, {1 / trial.sample_s:.2f} samples/s")
    text = f"{trial.bottleneck}; the backbones wait {trial.waited:.0%} of the time"
    if trial.bottleneck == "producers" and alone is not None:
        text += (
            f"; without waiting they reach {alone:,.0f} views/s: "
            "give more --producers if there are CPUs"
        )
    group.ok("slower side", text)
    group.ok(
        "duration", f"{duration(seconds)} for {amount(todo, 'sample')}, after loading (an estimate)"
    )
    return group


def duration(seconds: float) -> str:
    """A duration as text, in seconds, minutes or hours."""
    if seconds < 120:
        return amount(round(seconds), "second")
    if seconds < 7200:
        return amount(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"
