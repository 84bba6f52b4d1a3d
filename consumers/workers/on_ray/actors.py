"""What runs in the processes that Ray starts: the workers, and the board with their events."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import featurestore
from consumers.build import build
from consumers.config import BuildConfig
from consumers.progress import RunLog
from consumers.stopping import before_anything
from consumers.workers.on_ray.reporting import Event, Reporter
from consumers.workers.transport import error_values
from featurestore.storage.store import RUNS
from featurestore.system.limits import available_bytes, usable_cpus


@dataclass(frozen=True, slots=True)
class Spot:
    """Where Ray placed a worker.

    Attributes:
        host: name of the machine.
        cpus: number of CPUs that the worker's process may use.
        version: version of this project there.
        free_bytes: bytes of memory that were available to the process.
    """

    host: str
    cpus: int
    version: str
    free_bytes: int


@dataclass(slots=True)
class News:
    """What a worker has reported since the last look.

    Attributes:
        pid: id of its process; another one once Ray has started it again.
        events: its events, in order.
        age_s: time since its last report in seconds.
    """

    pid: int
    events: list[Event]
    age_s: float


class Board:
    """An actor that keeps the events of all workers for the driver, and its wish to stop."""

    def __init__(self) -> None:
        self._events: dict[int, list[Event]] = {}
        self._heard: dict[int, tuple[int, float]] = {}
        self._next: dict[tuple[int, int], int] = {}
        self._stops = False

    def post(self, worker: int, pid: int, number: int, events: Sequence[Event]) -> bool:
        """Adds events of a worker; those that it sent before are ignored.

        Args:
            worker: the worker.
            pid: its process.
            number: how many events of its build were sent before these.
            events: the events.

        Returns:
            Whether the build is to stop.
        """
        known = self._next.get((worker, pid), 0) - number if number else 0
        self._next[worker, pid] = number + len(events)
        self._events.setdefault(worker, []).extend(events[max(0, known) :])
        self._heard[worker] = pid, time.monotonic()
        return self._stops

    def read(self, stops: bool) -> dict[int, News]:
        """Takes the events of all workers; sets whether the build is to stop."""
        self._stops = stops
        now, events = time.monotonic(), self._events
        self._events = {}
        return {n: News(pid, events.get(n, []), now - at) for n, (pid, at) in self._heard.items()}


class Worker:
    """An actor that builds the share of one worker, in the main thread of its process."""

    def spot(self) -> Spot:
        """Where this actor is."""
        version = featurestore.__version__
        return Spot(socket.gethostname(), usable_cpus(), version, available_bytes())

    def build(
        self, post: Callable[[int, int, Sequence[Event]], bool], config: BuildConfig, folder: str
    ) -> dict[str, Any]:
        """Builds the share ``config.worker``.

        Args:
            post: function that sends events of a worker to the :class:`Board`, whose first has the
                given number, and returns whether the build is to stop.
            config: the configuration.
            folder: the folder that its relative paths begin at.

        Returns:
            The facts of the ``report``, or the values of the ``error`` that ended the build.
        """
        with suppress(OSError):  # this machine does not have it: only full paths can be used
            os.chdir(folder)
        assert config.worker is not None
        log = RunLog(config.store / RUNS)
        with Reporter(partial(post, config.worker.index)) as reporter:
            try:
                return {"report": build(config, [log, reporter]).facts()}
            except SystemExit:  # of Ray's handler, if the signal came when the build had ended
                if not reporter.has_signalled:
                    raise
                return {"error": error_values(before_anything(signal.SIGTERM))}
            except Exception as e:  # noqa: BLE001  the driver raises it
                return {"error": error_values(e)}
            finally:
                log.close()
