"""Several child processes that work on one list of tasks; those that die or hang are replaced.

When a process ends, its tasks are assigned again. The task that it was working on is blamed, so
that the owner of the tasks can skip a task that ends several processes. Exit status 0 counts as a
death like any other.

A process that does not end after SIGKILL is left alone, and its tasks are blamed and assigned again
in the same way. If two tasks have such processes at the same time, the cause is not one input but a
file system that does not answer: the work ends with an error that names the processes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from featurestore.errors import ProducerError, RecipeError
from producers import process
from producers.process import Child, Traceback, end_all

# Tasks that a process has at once: one in progress and one queued, so that it is never idle.
_DEPTH = 2
_START_TIMEOUT_S = 120.0
POLL_S = 0.5
# Number of processes that an input may end before it is skipped.
KILLS_PER_INPUT = 2


class Task(Protocol):
    """A unit of work for a process."""

    @property
    def stem(self) -> str:
        """Stem of the task's sample, for messages."""

    def message(self) -> bytes:
        """The task as JSON."""


T = TypeVar("T", bound=Task)


@dataclass(slots=True, eq=False)
class Worker(Generic[T]):
    """A process and its tasks.

    Attributes:
        child: the process.
        queue: its tasks; the first one is in progress.
        ready: whether the process has started.
        busy_s: time that the parent waited for it since its last report, in seconds.
    """

    child: Child
    queue: deque[T] = field(default_factory=deque)
    ready: bool = False
    busy_s: float = 0.0


class Crew(ABC, Generic[T]):
    """Processes that work on tasks. A context manager.

    Attributes:
        waited_s: total time spent in :meth:`wait`, in seconds.
        replaced: number of processes that ended and were replaced, by cause.
    """

    def __init__(self, start: Callable[[], Child], workers: int, timeout_s: float) -> None:
        """Starts ``workers`` processes by ``start``; a task may take ``timeout_s`` seconds.

        Raises:
            ProducerError: a process could not be started.
        """
        self._start = start
        self._timeout_s = timeout_s
        self._redo: deque[T] = deque()
        self._deaths_in_a_row = 0
        self._left: list[tuple[Child, str]] = []
        self.waited_s = 0.0
        self.replaced: Counter[str] = Counter()
        self._workers: list[Worker[T]] = []
        try:
            for _ in range(workers):
                self._workers.append(Worker(start()))
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _next(self) -> T | None:
        """The next task that was not assigned yet; None if there is none at present."""

    @abstractmethod
    def _finish(self, task: T, report: dict[str, Any]) -> None:
        """Handles the report of a task."""

    @abstractmethod
    def _blame(self, task: T, why: str) -> None:
        """Records that a task ended its process; the task is assigned again."""

    def _leave(self, pid: int, tasks: Sequence[T]) -> None:
        """Records that a process with these tasks does not end."""

    def _ended(self, pid: int) -> None:
        """Records that a process which was left alone has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        left = [each for each in self._left if each[0].is_left]
        if left and error is not None and not isinstance(error, ProducerError):
            error.add_note(f"{_named(left)} did not end after SIGKILL.")

    def close(self) -> None:
        """Ends all processes, except those that cannot be ended. A second call does nothing."""
        workers, self._workers = self._workers, []
        stems = {worker.child: _stem(worker) for worker in workers}
        self._left += [(child, stems[child]) for child in end_all(list(stems))]

    def dispatch(self) -> None:
        """Assigns tasks to the processes with the fewest tasks, as long as there are any."""
        while self._workers:
            worker = min(self._workers, key=lambda w: len(w.queue))
            if len(worker.queue) >= _DEPTH:
                return
            task = self._redo.popleft() if self._redo else self._next()
            if task is None:
                return
            worker.queue.append(task)
            try:
                worker.child.send(task.message())
            except OSError:
                self._died(worker)

    def wait(self, timeout_s: float) -> None:
        """Waits for a report or the end of any process, and replaces processes that are stuck.

        Raises:
            ProducerError: processes keep dying, cannot be ended, or one reported a defect.
            RecipeError: the function of a custom recipe failed.
        """
        start = time.monotonic()
        ready = wait([w.child.results for w in self._workers], timeout=timeout_s)
        elapsed = time.monotonic() - start
        self.waited_s += elapsed
        by_pipe = {id(w.child.results): w for w in self._workers}
        for pipe in ready:
            self._receive(by_pipe[id(pipe)])
        for worker in list(self._workers):
            # Only time spent waiting here counts, and at most one poll of it: if this process was
            # stopped for a minute, or busy on the GPU, no producer is to blame.
            if worker.queue or not worker.ready:
                worker.busy_s += min(elapsed, POLL_S)
            limit = self._timeout_s if worker.ready else _START_TIMEOUT_S
            if worker.busy_s > limit:
                self._died(worker, f"timeout: no result within {limit:g} s")

    def _receive(self, worker: Worker[T]) -> None:
        try:
            reports = worker.child.receive()
        except (EOFError, OSError):
            self._died(worker)
            return
        for report in reports:
            self._received(worker, report)

    def _received(self, worker: Worker[T], report: dict[str, Any]) -> None:
        if "failed" in report:
            failed = report["failed"]
            # A process that is still starting has tasks, but has not begun any.
            stem = worker.queue[0].stem if worker.ready and worker.queue else None
            raise RecipeError(failed["function"], failed["problem"], stem) from Traceback(
                failed["traceback"]
            )
        if "error" in report:
            stem = worker.queue[0].stem if worker.queue else None
            raise ProducerError(
                f"A producer reported a defect{f' at sample {stem!r}' if stem else ''}:\n"
                + report["error"],
                pid=worker.child.pid,
                stem=stem,
            )
        worker.busy_s = 0.0
        if not worker.ready:
            worker.ready = True
            return
        self._deaths_in_a_row = 0
        self._finish(worker.queue.popleft(), report)

    def _died(self, worker: Worker[T], why: str | None = None) -> None:
        """Replaces a process and assigns its tasks again, or raises."""
        if why is not None:
            worker.child.kill()
        status, output = worker.child.end()
        self._workers.remove(worker)
        if not status:
            why = why or "timeout: it closed its pipe and did not end"
        reason = why.partition(":")[0] if why else status
        if not status:
            reason += f"; process {worker.child.pid}{_stem(worker)} does not end"
        self.replaced[reason] += 1
        self._deaths_in_a_row += 1
        self._refuse(worker, why or status, output, hung=why is not None)
        if worker.queue and worker.ready:
            self._blame(worker.queue[0], why or f"killed: the decoder was ended by {status}")
        if not status:
            self._leave_alone(worker)
        self._redo.extendleft(reversed(worker.queue))
        self._workers.append(Worker(self._start()))

    def _refuse(self, worker: Worker[T], status: str, output: str, *, hung: bool) -> None:
        """Raises ProducerError if another process would end in the same way."""
        # A process that failed while it started would fail again; one that was killed need not.
        gave_up = not worker.ready and (hung or status.startswith("exit status"))
        if gave_up or self._deaths_in_a_row > 2 * len(self._workers) + 8:
            when = "while it started" if not worker.ready else "again and again"
            raise ProducerError(
                f"A producer process ended {when}: {status}.\n{output}".rstrip(),
                pid=worker.child.pid,
                signal=status,
                stem=worker.queue[0].stem if worker.queue else None,
            )

    def _leave_alone(self, worker: Worker[T]) -> None:
        """Records a process that does not end.

        Raises:
            ProducerError: a process of another task does not end either.
        """
        for child, stem in list(self._left):
            if not child.is_left:
                self._left.remove((child, stem))
                self._ended(child.pid)
        self._left.append((worker.child, _stem(worker)))
        self._leave(worker.child.pid, list(worker.queue))
        if len({stem for _, stem in self._left}) > 1:
            raise ProducerError(
                f"{_named(self._left)} did not end within {process.END_S:g} s of SIGKILL.\n"
                "They wait for a disk or a network file system that does not answer, such as that "
                "of the data folder.\nMake it answer, then run the same command again; a build "
                "resumes with --resume.",
                pid=worker.child.pid,
                stem=worker.queue[0].stem if worker.queue else None,
            )


def _stem(worker: Worker[Any]) -> str:
    return f" at sample {worker.queue[0].stem!r}" if worker.queue else ""


def _named(left: Sequence[tuple[Child, str]]) -> str:
    return ", ".join(f"Process {child.pid}{stem}" for child, stem in left)
