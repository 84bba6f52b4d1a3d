"""Threads that compute batches in parallel.

A batch is computed by one thread, in which torch has one intra-op thread: the last bits of features
do not depend on the number of threads, and no thread waits for another between two operations. The
threads share the weights; torch releases the interpreter's lock in its kernels. A GPU has one
thread, which only launches.
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
    """Priority of a task; smaller values are computed first.

    Images occupy buffers that the producers' next views need; texts wait in separate memory.
    """

    IMAGES = 0
    TEXTS = 1
    END = 2


class _Stopped(BaseException):
    """Ends a forward pass whose features are not needed any more."""


class Need:
    """Whether the batches of a chunk are to be computed.

    It is asked once, when the first of them starts: all of them are computed, or none.

    Args:
        ask: function that returns it; called in a compute thread.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: bool | None = None

    def __call__(self) -> bool:
        """Whether to compute them."""
        with self._lock:
            if self._answer is None:
                self._answer = self._ask()
            return self._answer

    @property
    def is_left(self) -> bool:
        """Whether none of them is computed, because the chunk is not needed any more."""
        return self._answer is False


@dataclass(order=True, slots=True)
class _Task:
    order: Order
    number: int
    chunk: int = field(compare=False)
    need: Need = field(compare=False)
    function: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)

    def run(self) -> Exception | None:
        """Runs the task unless it was cancelled; returns the exception that it raised, or None."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            if not self.need():
                raise _Stopped
            result = self.function()
        except _Stopped:
            failure: Exception = CancelledError()
        except Exception as error:  # noqa: BLE001  the future raises it
            failure = error
        except BaseException as error:  # noqa: BLE001  such as SystemExit
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
    # Set by the thread's last statement. Thread.join() does not suffice: in Python 3.11 and 3.12, a
    # join() that is interrupted by a signal marks a running thread as ended.
    ended: threading.Event = field(default_factory=threading.Event)
    # Idle time so far in seconds, and the start of the current idle period or None. The tuple is
    # replaced as a whole, because another thread reads it.
    idle: tuple[float, float | None] = (0.0, None)


class ComputePool:
    """Threads that run batches, images before texts. A context manager.

    When a task fails, its chunk and all later chunks are lost: their tasks fail with the same
    error. Leaving the block after an error waits for the tasks of the earlier chunks. After a
    second Ctrl-C, which is no ``Exception``, it cancels queued tasks and stops running ones.

    Args:
        threads: number of batches that are computed in parallel; 1 on a GPU.
        device: device that computes them.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads = threads
        self._device = device
        self._queue: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._chunk = 0
        self._need = Need(lambda: True)
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
        """Queues ``function``; tasks of the same order are started in the order submitted.

        Raises:
            Exception: the error of an earlier task.
        """
        if self._failure is not None:
            raise self._failure[0]
        task = _Task(order, next(self._numbers), self._chunk, self._need, function, Future())
        self._queue.put(task)
        return task.future

    def start_chunk(self, is_needed: Callable[[], bool]) -> Need:
        """Starts a chunk: tasks that are submitted from now on are only run if it is needed.

        The futures of tasks that are not run raise CancelledError.

        Args:
            is_needed: function that is called once, when the first of them starts.
        """
        self._need = Need(is_needed)
        return self._need

    def end_chunk(self) -> None:
        """Ends a chunk: tasks that are submitted afterwards belong to the next chunk."""
        self._chunk += 1

    @property
    def idle_s(self) -> float:
        """Total idle time in seconds, averaged over the threads."""
        now = time.monotonic()
        idle = [each.idle for each in self._threads]
        return sum(s + (now - since if since else 0.0) for s, since in idle) / len(idle)

    def __enter__(self) -> ComputePool:
        for number, each in enumerate(self._threads):
            try:
                each.thread.start()
            except RuntimeError as error:  # the limit on threads is reached
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
            error.add_note(f"A batch failed as well: {failure}")

    def _end(self, *, stop: bool) -> None:
        """Ends all threads: at once, or after the queued tasks."""
        if stop:
            self._stopping = True
            self._cancel_queued()
        for _ in self._threads:
            end = _Task(Order.END, next(self._numbers), self._chunk, self._need, _nothing, Future())
            self._queue.put(end)
        hook = register_module_forward_pre_hook(self._leave) if stop else None
        try:
            for each in self._threads:
                each.ended.wait()
        finally:
            if hook is not None:
                hook.remove()

    def _leave(self, _module: torch.nn.Module, _inputs: object) -> None:
        """Ends a forward pass of this pool between two of the model's modules.

        A forward pass of a large model takes minutes on a CPU.
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
        """Sets torch's per-thread settings; if that fails, every task fails."""
        try:
            with _setting_up:
                # get_num_threads() comes first: a thread's first call initialises its own setting.
                torch.get_num_threads()
                torch.set_num_threads(1)
                torch.set_grad_enabled(False)
                if self._device.type == "cuda":
                    torch.cuda.set_device(self._device)
        except Exception as error:  # noqa: BLE001  raised by submit() and by futures
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
    """The function of a thread's last task; does nothing."""
