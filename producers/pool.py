"""Producer processes and their slots: the views of each sample, in the order of the samples.

Samples are returned in the caller's order, whichever producer is faster: a sample is dispatched,
with a slot, before any later sample, so the sample that is waited for always has a slot.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore.records import BadInput, Sample, SampleRecord
from producers.crew import KILLS_PER_INPUT, POLL_S, Crew
from producers.process import Child, machine_errors, temporary_file
from producers.slots import Ring, SlotArrays
from producers.sources.readers import nowhere
from producers.worker import STAGES, Job


def _nothing() -> None:
    """The default callback of :meth:`ProducerPool.take`; does nothing."""


@dataclass(frozen=True, slots=True)
class SampleViews:
    """The views of one sample, in shared memory until :meth:`ProducerPool.release`.

    Attributes:
        record: the record of the sample.
        arrays: the arrays of the views.
        slot: number of the slot that holds the arrays.
        cut: number of truncated texts for each text specification.
    """

    record: SampleRecord
    arrays: SlotArrays
    slot: int
    cut: tuple[int, ...]


@dataclass(slots=True)
class _Task:
    sample: Sample
    where: Any
    slot: int
    skip: dict[str, str] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def stem(self) -> str:
        return self.sample.stem

    def message(self) -> bytes:
        message = {
            "sample": self.sample.values(),
            "where": self.where,
            "slot": self.slot,
            "skip": self.skip,
        }
        return json.dumps(message).encode("ascii")


class ProducerPool(Crew[_Task]):
    """Producer processes that compute the views of ``samples``, in order. A context manager.

    Attributes:
        ring: the slots.
        waited_s: total time that :meth:`take` waited for producers, in seconds.
        replaced: number of producers that ended and were replaced, by cause.
    """

    def __init__(
        self,
        job: Job,
        samples: Iterable[Sample],
        *,
        producers: int,
        timeout_s: float,
        where: Callable[[Sample], Any] = nowhere,
    ) -> None:
        """Reserves the slots and starts ``producers`` processes.

        Args:
            job: the work of the processes.
            samples: the samples, in the order in which they are taken.
            producers: number of processes.
            timeout_s: time after which a sample counts as stuck, in seconds.
            where: function that returns a sample's locator, plain values for the job's reader.

        Raises:
            ConfigError: the slots need more memory than is free.
            ProducerError: a process could not be started.
            StorageError: a temporary file cannot be written.
        """
        self._todo: Iterator[Sample] = iter(samples)
        self._where = where
        self._order: deque[int] = deque()
        self._done: dict[int, SampleViews] = {}
        self._free = list(range(job.slots))
        # Slots that a process which does not end may still write to, by process id; and slots that
        # are free again because their process has ended after all.
        self._held: dict[int, list[int]] = {}
        self._spare: list[int] = []
        job_file = temporary_file(job.to_json())  # closed in close()
        try:
            with machine_errors("The slots between producers and backbones could not be opened"):
                self.ring = Ring(job.layout, job.slots)
        except BaseException:
            job_file.close()
            raise
        self._job_file = job_file

        def start() -> Child:
            return Child("producers.worker", job_file, [self.ring.fd])

        super().__init__(start, producers, timeout_s)

    @property
    def filled(self) -> int:
        """Number of samples that are ready and not taken yet."""
        return len(self._done)

    def take(self, waiting: Callable[[], None] = _nothing) -> SampleViews:
        """Waits for the next sample's views and returns them.

        Args:
            waiting: callback that is called at least twice a second while no sample is ready. An
                exception that it raises ends the wait, and the sample can still be taken.

        Raises:
            StopIteration: there are no more samples.
            ProducerError: producers keep dying, cannot be ended, or one reported a defect.
        """
        self.dispatch()
        if not self._order:
            raise StopIteration
        timeout_s = 0.0
        while self._order[0] not in self._done:
            self.wait(timeout_s)
            self.dispatch()
            if self._order[0] not in self._done:
                waiting()
                timeout_s = POLL_S
        return self._done.pop(self._order.popleft())

    def release(self, views: SampleViews) -> None:
        """Frees the slot; its arrays must not be read any more."""
        self._free.append(views.slot)
        self.dispatch()

    def close(self) -> None:
        """Ends all producers and frees the memory. A second call does nothing."""
        super().close()
        # A process that does not end keeps its own mapping of the memory until it ends.
        self.ring.close()
        self._done.clear()
        self._job_file.close()

    def _next(self) -> _Task | None:
        if not self._free:
            return None
        sample = next(self._todo, None)
        if sample is None:
            return None
        self._order.append(sample.index)
        return _Task(sample, self._where(sample), self._free.pop())

    def _finish(self, task: _Task, report: dict[str, Any]) -> None:
        index = task.sample.index
        record = SampleRecord(
            index,
            report["image_sha256"],
            report["text_sha256"],
            report["words"],
            tuple(BadInput(index, *bad) for bad in report["bad"]),
        )
        arrays = self.ring.slot(task.slot)
        self._done[index] = SampleViews(record, arrays, task.slot, tuple(report["cut"]))

    def _blame(self, task: _Task, why: str) -> None:
        """Counts the processes that an input ended; after the second one the input is skipped."""
        state = self.ring.slot(task.slot).stage
        stage = STAGES[int(state[0])]
        state[0] = 0
        task.kills[stage] += 1
        if stage and task.kills[stage] >= KILLS_PER_INPUT:
            task.skip[stage] = f"{why}, {KILLS_PER_INPUT} times"

    def _leave(self, pid: int, tasks: Sequence[_Task]) -> None:
        """Assigns other slots to the tasks of a process that does not end.

        Its program was killed, but the system call that it waits in may still write to its slots.
        """
        self._held[pid] = [task.slot for task in tasks]
        for task in tasks:
            task.slot = self._spare.pop() if self._spare else self.ring.add()

    def _ended(self, pid: int) -> None:
        self._spare += self._held.pop(pid)
