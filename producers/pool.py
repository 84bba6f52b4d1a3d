"""Start, feed, watch and replace producer processes; hand their samples on in order.

One pair of pipes per producer and no lock that two processes share: a process that is killed while
it holds a lock would stop everybody. The end of a pipe is the end of its producer, whatever ended
it; exit status 0 counts as a death like any other.

The order of the samples is the caller's, whichever producer is faster: a sample is dispatched, with
a slot, before any later one, so the one that is waited for always makes progress.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from featurestore.errors import ProducerError, StorageError
from featurestore.records import BadInput, Sample, SampleRecord
from producers.parent import PRODUCER_CODE, STOP_SIGNALS
from producers.ring import Ring, SlotArrays
from producers.worker import STAGES, Job

# Tasks a producer has in hand: one in work and one waiting, so that it never waits for the parent.
_DEPTH = 2
_START_TIMEOUT_S = 120.0
_POLL_S = 0.5
_KILLS_PER_INPUT = 2
_ROOT = Path(__file__).resolve().parent.parent


def _nothing() -> bool:
    """What :meth:`ProducerPool.take` does beside waiting, unless told otherwise."""
    return False


@dataclass(frozen=True, slots=True)
class SampleViews:
    """One sample's views, in place in shared memory until :meth:`ProducerPool.release`.

    Attributes:
        record: what became known of the sample.
        arrays: the views.
        slot: the slot they lie in.
        cut: number of truncated texts per text specification.
    """

    record: SampleRecord
    arrays: SlotArrays
    slot: int
    cut: tuple[int, ...]


@dataclass(slots=True)
class _Task:
    sample: Sample
    slot: int
    skip: dict[str, str] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def message(self) -> bytes:
        s = self.sample
        values = [s.index, s.stem, s.image_name, s.text_name]
        return json.dumps({"sample": values, "slot": self.slot, "skip": self.skip}).encode("ascii")


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    tasks: Connection
    results: Connection
    stderr: IO[bytes]
    queue: deque[_Task] = field(default_factory=deque)
    ready: bool = False
    busy_s: float = 0.0


class ProducerPool:
    """Producer processes that make the views of ``samples``, in order. A context manager.

    Attributes:
        ring: the slots.
        waited_s: seconds that :meth:`take` waited for producers, since the start.
        replaced: producers that died and were replaced, by what ended them.
    """

    def __init__(
        self, job: Job, samples: Iterable[Sample], *, workers: int, timeout_s: float
    ) -> None:
        """Reserves the ring and starts ``workers`` processes.

        Raises:
            ConfigError: the machine has less memory free than the slots need.
        """
        self._timeout_s = timeout_s
        self._todo: Iterator[Sample] = iter(samples)
        self._redo: deque[_Task] = deque()
        self._order: deque[int] = deque()
        self._done: dict[int, SampleViews] = {}
        self._deaths_in_a_row = 0
        self.waited_s = 0.0
        self.replaced: Counter[str] = Counter()
        self._free = list(range(job.slots))
        self._job_file = _temporary_file(job.to_json())  # closed in close()
        try:
            self.ring = Ring(job.layout, job.slots)
        except BaseException:
            self._job_file.close()
            raise
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ProducerPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def filled(self) -> int:
        """Samples that are ready and not taken yet."""
        return len(self._done)

    def take(self, waiting: Callable[[], bool] = _nothing) -> SampleViews:
        """The next sample's views; waits for them.

        Args:
            waiting: called while there is nothing to take: at once where it returned True, as it
                has more to do, else at least twice a second. What it raises ends the wait, and the
                sample can still be taken.

        Raises:
            StopIteration: there are no more samples.
            ProducerError: producers keep dying, or one met a defect.
        """
        self._dispatch()
        if not self._order:
            raise StopIteration
        timeout_s = 0.0
        while self._order[0] not in self._done:
            self._wait(timeout_s)
            self._dispatch()
            if self._order[0] not in self._done:
                timeout_s = 0.0 if waiting() else _POLL_S
        return self._done.pop(self._order.popleft())

    def release(self, views: SampleViews) -> None:
        """Gives the slot back; its arrays must not be read any more."""
        self._free.append(views.slot)
        self._dispatch()

    def close(self) -> None:
        """Ends all producers and gives the memory back; calling it again does nothing."""
        for worker in self._workers:
            worker.tasks.close()
            worker.process.kill()
        for worker in self._workers:
            _reap(worker)
        if self._workers or self.ring.slots:
            self.ring.close()
        self._workers = []
        self._done.clear()
        self._job_file.close()

    def _start(self) -> _Worker:
        with ExitStack() as undo:
            try:
                return self._start_with(undo)
            except OSError as e:
                raise ProducerError(
                    f"A producer process could not be started: {e.strerror}.\n"
                    "Choose fewer with --workers, or raise the limit on processes and open files."
                ) from e

    def _start_with(self, undo: ExitStack) -> _Worker:
        """Starts a producer; ``undo`` closes what was opened for it where that fails."""
        stderr = undo.enter_context(_temporary_file())
        task_read, task_write = _pipe(undo)
        result_read, result_write = _pipe(undo)
        fds = (self._job_file.fileno(), self.ring.fd, task_read, result_write)
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in paths if p),
            "CUDA_VISIBLE_DEVICES": "",  # producers never touch a GPU
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        arguments = [str(a) for a in (*fds, os.getpid())]
        # A Ctrl-C goes to the whole group. Until a new producer can ignore it, the mask that it
        # inherits holds it back: the parent alone decides when to stop.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", PRODUCER_CODE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=fds,
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        undo.pop_all()
        os.close(task_read)
        os.close(result_write)
        return _Worker(
            process,
            Connection(task_write, readable=False),
            Connection(result_read, writable=False),
            stderr,
        )

    def _dispatch(self) -> None:
        """Gives tasks to the producers with the fewest, as long as there are slots."""
        while self._workers:
            worker = min(self._workers, key=lambda w: len(w.queue))
            if len(worker.queue) >= _DEPTH:
                return
            task = self._next_task()
            if task is None:
                return
            worker.queue.append(task)
            try:
                worker.tasks.send_bytes(task.message())
            except OSError:
                self._died(worker)

    def _next_task(self) -> _Task | None:
        if self._redo:
            return self._redo.popleft()
        if not self._free:
            return None
        sample = next(self._todo, None)
        if sample is None:
            return None
        self._order.append(sample.index)
        return _Task(sample, self._free.pop())

    def _wait(self, timeout_s: float) -> None:
        """Waits for any producer's message or end, and for those that are stuck."""
        start = time.monotonic()
        ready = wait([w.results for w in self._workers], timeout=timeout_s)
        elapsed = time.monotonic() - start
        self.waited_s += elapsed
        by_pipe = {id(w.results): w for w in self._workers}
        for pipe in ready:
            self._receive(by_pipe[id(pipe)])
        for worker in list(self._workers):
            # Only time spent waiting here counts, and at most one poll of it: a parent that was
            # stopped for a minute, or busy on the GPU, must not find everybody guilty.
            if worker.queue or not worker.ready:
                worker.busy_s += min(elapsed, _POLL_S)
            limit = self._timeout_s if worker.ready else _START_TIMEOUT_S
            if worker.busy_s > limit:
                self._died(worker, f"timeout: no result within {limit:g} s")

    def _receive(self, worker: _Worker) -> None:
        try:
            message = json.loads(worker.results.recv_bytes())
        except (EOFError, OSError):
            self._died(worker)
            return
        if "error" in message:
            stem = worker.queue[0].sample.stem if worker.queue else None
            raise ProducerError(
                f"A producer met a defect{f' at sample {stem!r}' if stem else ''}:\n"
                + message["error"],
                pid=worker.process.pid,
                stem=stem,
            )
        worker.busy_s = 0.0
        if not worker.ready:
            worker.ready = True
            return
        self._deaths_in_a_row = 0
        task = worker.queue.popleft()
        self._done[task.sample.index] = self._views(task, message)

    def _views(self, task: _Task, message: dict[str, Any]) -> SampleViews:
        index = task.sample.index
        record = SampleRecord(
            index,
            message["image_sha256"],
            message["text_sha256"],
            message["words"],
            tuple(BadInput(index, *bad) for bad in message["bad"]),
        )
        arrays = self.ring.slots[task.slot]
        return SampleViews(record, arrays, task.slot, tuple(message["cut"]))

    def _died(self, worker: _Worker, why: str | None = None) -> None:
        """Replaces a producer and has its samples done again, or raises."""
        if why is not None:
            worker.process.kill()
        status, output = _reap(worker)
        self._workers.remove(worker)
        self.replaced[why.partition(":")[0] if why else status] += 1
        self._deaths_in_a_row += 1
        stem = worker.queue[0].sample.stem if worker.queue else None
        # One that gave up while it started would do so again; one that was killed need not.
        gave_up = not worker.ready and (why is not None or status.startswith("exit status"))
        if gave_up or self._deaths_in_a_row > 2 * len(self._workers) + 8:
            when = "while it started" if not worker.ready else "again and again"
            raise ProducerError(
                f"A producer process ended {when}: {why or status}.\n{output}".rstrip(),
                pid=worker.process.pid,
                signal=status,
                stem=stem,
            )
        if worker.queue and worker.ready:
            self._blame(worker.queue[0], why or f"killed: the decoder was ended by {status}")
        self._redo.extendleft(reversed(worker.queue))
        self._workers.append(self._start())

    def _blame(self, task: _Task, why: str) -> None:
        """Notes what the sample did; an input that did it twice is not tried a third time."""
        state = self.ring.slots[task.slot].stage
        stage = STAGES[int(state[0])]
        state[0] = 0
        task.kills[stage] += 1
        if stage and task.kills[stage] >= _KILLS_PER_INPUT:
            task.skip[stage] = f"{why}, {_KILLS_PER_INPUT} times"


def _temporary_file(content: bytes = b"") -> IO[bytes]:
    """A file without a name.

    Raises:
        StorageError: the folder of temporary files takes none.
    """
    with ExitStack() as undo:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
            undo.callback(_close_quietly, file)
            file.write(content)
            file.flush()
        except OSError as e:
            raise StorageError(Path(tempfile.gettempdir()), e.strerror or str(e)) from e
        undo.pop_all()
    return file


def _close_quietly(file: IO[bytes]) -> None:
    with suppress(OSError):  # it flushes once more
        file.close()


def _pipe(undo: ExitStack) -> tuple[int, int]:
    """Both ends of a new pipe, which ``undo`` closes."""
    read, write = os.pipe()
    undo.callback(os.close, read)
    undo.callback(os.close, write)
    return read, write


def _reap(worker: _Worker) -> tuple[str, str]:
    """Waits for the end of a producer whose pipe has ended.

    Returns:
        What ended it, as words, and the end of what it printed.
    """
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        code = worker.process.wait()
    worker.tasks.close()
    worker.results.close()
    worker.stderr.seek(max(0, worker.stderr.seek(0, os.SEEK_END) - 2000))
    output = worker.stderr.read().decode("utf-8", "replace").strip()
    worker.stderr.close()
    if code >= 0:
        return f"exit status {code}", output
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    note = " (probably out of memory)" if -code == signal.SIGKILL else ""
    return name + note, output
