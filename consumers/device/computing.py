"""Threads that compute batches side by side.

A batch is computed by one thread, in which torch has one intra-op thread: the last bits of features
do not depend on how many threads there are, and none of them waits for another between two
operations. The threads share the weights; torch releases the interpreter's lock in its kernels. A
GPU has one thread, which only launches.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from featurestore.errors import BackboneError, ConfigError

# torch changes settings of the whole process when a thread sets its number of intra-op threads.
_setting_up = threading.Lock()


class Order(IntEnum):
    """What is computed first.

    Images hold buffers that the producers' next views need; texts wait in memory of their own.
    """

    IMAGES = 0
    TEXTS = 1
    END = 2


class _Stopped(BaseException):
    """Ends a forward pass whose features nobody wants any more."""


@dataclass(order=True, slots=True)
class _Task:
    order: Order
    number: int
    chunk: int = field(compare=False)
    function: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)

    def run(self) -> Exception | None:
        """Runs it unless it was cancelled; returns what it raised."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            result = self.function()
        except _Stopped:
            failure: Exception = CancelledError()
        except Exception as error:  # noqa: BLE001  the future raises it where it is asked for
            failure = error
        except BaseException as error:  # noqa: BLE001  a library's way out, not ours
            failure = BackboneError(f"A backbone ended its thread: {type(error).__name__}: {error}")
            failure.__cause__ = error
        else:
            self.future.set_result(result)
            return None
        self.future.set_exception(failure)
        return failure


@dataclass(slots=True)
class _Thread:
    thread: threading.Thread
    # Set as the last thing that the thread does. Thread.join is no proof: in Python 3.11 and 3.12
    # one that a signal interrupts takes a running thread for one that has ended.
    ended: threading.Event = field(default_factory=threading.Event)
    # Seconds without a task so far, and since when it has had none: replaced in one step, as
    # another thread reads them.
    idle: tuple[float, float | None] = (0.0, None)


class ComputePool:
    """Threads that run batches, images before texts. A context manager.

    Once a task has failed, its chunk is lost and so are those after it: their tasks fail with the
    same error. Leaving the block after an error waits for the tasks of the chunks before. After a
    second Ctrl-C, which is no ``Exception``, it cancels what is queued and stops what runs.

    Args:
        threads: how many batches are computed side by side; 1 on a GPU.
        device: where they are computed.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads = threads
        self._device = device
        self._queue: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._chunk = 0
        # The first error, and the first chunk that failed.
        self._failure: tuple[Exception, int] | None = None
        self._stopping = False
        self._intra_op = torch.get_num_threads()
        self._threads = [
            _Thread(
                threading.Thread(target=self._work, args=(i,), name=f"compute-{i}", daemon=True)
            )
            for i in range(threads)
        ]

    def submit(self, order: Order, function: Callable[[], Any]) -> Future[Any]:
        """Queues ``function``; tasks of the same order begin one after the other.

        Raises:
            Exception: what an earlier task raised.
        """
        if self._failure is not None:
            raise self._failure[0]
        task = _Task(order, next(self._numbers), self._chunk, function, Future())
        self._queue.put(task)
        return task.future

    def end_chunk(self) -> None:
        """Ends a chunk: what is submitted from now on belongs to the next one."""
        self._chunk += 1

    @property
    def idle_s(self) -> float:
        """Seconds that the threads had nothing to compute, on average, since the start."""
        now = time.monotonic()
        idle = [each.idle for each in self._threads]
        return sum(s + (now - since if since else 0.0) for s, since in idle) / len(idle)

    def __enter__(self) -> ComputePool:
        for number, each in enumerate(self._threads):
            try:
                each.thread.start()
            except RuntimeError as error:  # the system has no thread to give
                del self._threads[number:]
                self.__exit__(None, None, None)
                raise ConfigError(
                    f"{self.threads} compute threads could not be started: {error}.\n"
                    "Choose fewer with --threads, or raise the limit on processes and threads."
                ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stop = kind is not None and not issubclass(kind, Exception)
        try:
            self._end(stop=stop)
        except BaseException:
            self._end(stop=True)
            raise
        finally:
            torch.set_num_threads(self._intra_op)
        failure = self._failure[0] if self._failure else None
        if error is not None and failure not in (None, error):
            error.add_note(f"Beside it, a batch failed: {failure}")

    def _end(self, *, stop: bool) -> None:
        """Ends all threads, after what is queued or at once."""
        if stop:
            self._stopping = True
            self._cancel_queued()
        for _ in self._threads:
            end = _Task(Order.END, next(self._numbers), self._chunk, _nothing, Future())
            self._queue.put(end)
        hook = register_module_forward_pre_hook(self._leave) if stop else None
        try:
            for each in self._threads:
                each.ended.wait()
        finally:
            if hook is not None:
                hook.remove()

    def _leave(self, _module: torch.nn.Module, _inputs: object) -> None:
        """Ends a forward pass of this pool between two of its modules.

        One of a large model takes minutes on a CPU.
        """
        if any(each.thread is threading.current_thread() for each in self._threads):
            raise _Stopped

    def _cancel_queued(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait().future.cancel()

    def _work(self, index: int) -> None:
        own = self._threads[index]
        try:
            self._set_up()
            while True:
                start = time.monotonic()
                own.idle = own.idle[0], start
                task = self._queue.get()
                own.idle = own.idle[0] + time.monotonic() - start, None
                if task.order is Order.END:
                    return
                self._run(task)
        finally:
            own.ended.set()

    def _set_up(self) -> None:
        """Settings that torch has for each thread; where they fail, so does every task."""
        try:
            with _setting_up:
                # Asked first: a thread's first answer is the number of the whole process.
                torch.get_num_threads()
                torch.set_num_threads(1)
                torch.set_grad_enabled(False)
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
        except Exception as error:  # noqa: BLE001  raised to whoever submits or waits
            self._failure = error, 0

    def _run(self, task: _Task) -> None:
        if self._failure is not None and task.chunk >= self._failure[1]:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(self._failure[0])
            return
        if self._stopping:
            task.future.cancel()
            task.future.set_running_or_notify_cancel()
            return
        failure = task.run()
        if failure is not None and not isinstance(failure, CancelledError):
            first = self._failure or (failure, task.chunk)
            self._failure = first[0], min(first[1], task.chunk)


def _nothing() -> None:
    """What the last task of a thread does."""
