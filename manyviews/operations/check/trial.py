"""A trial build of a few samples, which measures how long a build takes.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from manyviews.operations.check.reading import evenly
from manyviews.operations.nearness import Nearness, NearnessSums, usable

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
        nearness: of each feature, how near its views stay to the clean view.
    """

    samples: int
    total_s: float
    sample_s: float
    waited: float
    producer_s: float = 0.0
    nearness: Mapping[str, Nearness] = field(default_factory=dict)

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
    report, nearness = _build(small, place, on_event)
    total_s = report.seconds
    count = len(marks)
    if count < 3:
        waited = marks[-1][1] / total_s
        return Trial(count, total_s, total_s / count, waited, nearness=nearness)
    (e2, w2), (e3, w3) = marks[2 * chunk - 1], marks[-1]
    elapsed = max(e3 - e2, 1e-6)
    sample_s, waited = elapsed / (count - 2 * chunk), (w3 - w2) / elapsed
    return Trial(count, total_s, sample_s, waited, nearness=nearness)


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


class _TrialStore(UnnamedStore):
    """A store that keeps nothing but how near its views stay to the clean view.

    Attributes:
        sums: the measurements of each feature.
    """

    sums: dict[str, NearnessSums]

    def commit_chunk(
        self,
        chunk: int,
        rows: Mapping[str, npt.NDArray[np.float32]],
        samples: Sequence[SampleRecord],
        changed: Mapping[str, str],
    ) -> None:
        """Measures the rows, and writes them as a build does."""
        super().commit_chunk(chunk, rows, samples, changed)
        for name, block in rows.items():
            self.sums[name].add(block[usable(samples, self.spec.modalities[name])])


def _build(
    plan: Plan, folder: Path, on_event: Callable[..., None]
) -> tuple[BuildReport, dict[str, Nearness]]:
    from consumers import main_loop  # loads torch

    writer = _TrialStore(folder, plan.spec, plan.fingerprint, plan.decided.found.samples)
    writer.sums = {name: NearnessSums() for name in plan.spec.dims}
    try:
        report = main_loop.run_plan(plan, writer, on_event)
    except InterruptedBuildError as error:
        raise InterruptedBuildError(
            error.signum, "The check was interrupted; nothing was changed."
        ) from None
    measured = {name: sums.nearness() for name, sums in writer.sums.items()}
    return report, {name: near for name, near in measured.items() if near is not None}
