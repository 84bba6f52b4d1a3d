"""Threads that compute batches side by side.

A batch is computed by one thread, in which torch has one intra-op thread: the last bits of features
do not depend on how many threads there are, and none of them waits for another between two
operations. The threads share the weights; torch releases the interpreter's lock in its kernels. A
GPU has one thread, which only launches.
"""

from __future__ import annotations

import ctypes
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

# torch changes settings of the whole process when a thread sets its number of intra-op threads.
_setting_up = threading.Lock()


class Order(IntEnum):
    """What is computed first.

    Images hold buffers that the producers' next views need; texts wait in memory of their own.
    """

    IMAGES = 0
    TEXTS = 1
    END = 2


class _Stopped(SystemExit):
    """Ends a thread whose batch nobody wants any more; as it leaves, Python prints nothing."""


@dataclass(order=True, slots=True)
class _Task:
    order: Order
    number: int
    chunk: int = field(compare=False)
    function: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)

    def run(self) -> BaseException | None:
        """Runs it unless it was cancelled; returns what it raised."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            result = self.function()
        except Exception as error:  # noqa: BLE001  the future raises it where it is asked for
            self.future.set_exception(error)
            return error
        self.future.set_result(result)
        return None


@dataclass(slots=True)
class _Thread:
    thread: threading.Thread
    task: _Task | None = None
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
        self._failure: tuple[BaseException, int] | None = None
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
        for each in self._threads:
            each.thread.start()
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
            self._cancel_queued()
        for _ in self._threads:
            end = _Task(Order.END, next(self._numbers), self._chunk, _nothing, Future())
            self._queue.put(end)
        if stop:
            for each in self._threads:
                _stop(each.thread)
        for each in self._threads:
            each.thread.join()
            if each.task is not None and not each.task.future.done():
                each.task.future.set_exception(CancelledError())

    def _cancel_queued(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait().future.cancel()

    def _work(self, index: int) -> None:
        own = self._threads[index]
        with suppress(_Stopped):
            with _setting_up:
                torch.set_num_threads(1)
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
            while True:
                start = time.monotonic()
                own.idle = own.idle[0], start
                task = own.task = self._queue.get()
                own.idle = own.idle[0] + time.monotonic() - start, None
                if task.order is Order.END:
                    return
                self._run(task)

    def _run(self, task: _Task) -> None:
        if self._failure is not None and task.chunk >= self._failure[1]:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(self._failure[0])
            return
        failure = task.run()
        if failure is not None:
            first = self._failure or (failure, task.chunk)
            self._failure = first[0], min(first[1], task.chunk)


def _nothing() -> None:
    """What the last task of a thread does."""


def _stop(thread: threading.Thread) -> None:
    """Raises ``_Stopped`` in a thread, at its next step in Python.

    A forward pass of a large model takes minutes on a CPU; between two of its operations it can
    be left.
    """
    if thread.ident is not None:
        ident = ctypes.c_ulong(thread.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Stopped))
