"""The parent process of ``--devices``: one worker process on each device.

The parent computes nothing and hands out no work: its workers find their chunks like all others
(``walk``). It starts them, starts those again that were killed, relays stop signals, passes their
events on, and ends when the store is complete, whatever its workers say: a worker that is stuck
with a chunk that another one has built is ended then.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from typing import IO, Any

from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from consumers.device.devices import resolve_devices
from consumers.stopping import Notifier, stop_signals
from consumers.workers.outcome import Reports
from consumers.workers.places import Place, make_places
from consumers.workers.transport import config_values, error_of
from featurestore.errors import ManyViewsWarning, WorkerError
from featurestore.wording import amount
from producers.crew import POLL_S
from producers.process import END_S, end_all, temporary_file

# Number of times that a killed worker is started again on its device.
RESTARTS = 3


def build_on_devices(config: BuildConfig, notify: Callable[..., None]) -> BuildReport:
    """Builds a store with one worker process on each of ``config.devices``.

    Args:
        config: the configuration.
        notify: callback that receives an event's name and, as keywords, its facts.

    Raises:
        ManyViewsError: see :func:`consumers.build.build`; the error of the first worker that ended
            with one, if the others could not complete the store. Only if every worker was refused,
            it is an error of the configuration.
        WorkerError: a worker was killed again and again.
    """
    places = make_places(config, resolve_devices(config.devices))
    shared = replace(config, devices=(), worker=None)
    job = {"config": config_values(shared), "path": sys.path}
    with temporary_file(json.dumps(job).encode("ascii")) as file:
        return _Parent(config, places, file, Notifier(notify)).execute()


class _Parent:
    """The parent process: its places, and what they reported."""

    def __init__(
        self, config: BuildConfig, places: list[Place], job: IO[bytes], notify: Notifier
    ) -> None:
        self._places, self._job, self._notify = places, job, notify
        self._reports = Reports(config.store, notify, is_only=config.worker is None)

    def execute(self) -> BuildReport:
        """Starts the workers, waits until the store is complete, and returns the report."""
        self._reports.name([place.label for place in self._places])
        try:
            with stop_signals(self._relay) as stopped:
                for place in self._places:
                    place.start(self._job)
                try:
                    self._wait(stopped)
                except KeyboardInterrupt:
                    self._stop_at_once()
                    raise
        finally:
            end_all([each.child for each in self._places if each.child is not None])
        return self._reports.result(stopped)

    def _relay(self, number: int) -> None:
        """Passes a stop signal on to the workers; called by its handler."""
        self._relay_once(number)
        self._notify.from_handler("stopping", signal=signal.Signals(number).name)

    def _relay_once(self, number: int) -> None:
        for place in self._places:
            if not place.is_stopping:
                place.relay(number)

    def _stop_at_once(self) -> None:
        """Lets the workers end by themselves after a second Ctrl-C, for a short time."""
        for place in self._places:
            place.relay(signal.SIGINT)
        deadline = time.monotonic() + END_S
        while self._running and time.monotonic() < deadline:
            self._receive(stopping=True)

    @property
    def _running(self) -> list[Place]:
        return [place for place in self._places if place.child is not None]

    def _wait(self, stopped: list[int]) -> None:
        """Waits until all workers have ended, or the store is complete."""
        while self._running:
            if stopped:  # a worker that was started again meanwhile has not received it
                self._relay_once(stopped[0])
            self._reports.look(at_once=self._receive(stopping=bool(stopped)))
            if self._reports.complete_s >= END_S:
                return  # those that still run have had the time to see it

    def _receive(self, *, stopping: bool) -> bool:
        """Receives what the workers report; returns whether one of them ended."""
        by_pipe = {place.child.results: place for place in self._places if place.child is not None}
        has_ended = False
        for pipe in wait(list(by_pipe), timeout=POLL_S):
            place = by_pipe[pipe]  # type: ignore[index]  # only connections were waited for
            assert place.child is not None
            try:
                messages = place.child.receive()
            except (EOFError, OSError):
                self._ended(place, stopping=stopping)
                has_ended = True
            else:
                for message in messages:
                    self._received(place, message)
        return has_ended

    def _received(self, place: Place, message: Mapping[str, Any]) -> None:
        if "warning" in message:
            warnings.warn(message["warning"], ManyViewsWarning, stacklevel=2)
        elif "report" in message:
            place.has_ended = True
            self._reports.finished(place.number, place.pid, message["report"])
        elif "error" in message:
            place.has_ended = True
            error = error_of(message["error"], f"The worker on {place.label}")
            self._reports.failed(place.number, error)
        else:
            self._reports.event(place.number, place.pid, message["event"], message["facts"])

    def _ended(self, place: Place, *, stopping: bool) -> None:
        """Starts a killed worker again; not one that ended by itself."""
        assert place.child is not None
        status, output = place.child.end()
        place.child = None
        if place.has_ended or stopping or self._reports.outcome.is_complete:
            return
        status = status or "does not end"
        if place.restarts < RESTARTS:
            place.restarts += 1
            self._reports.restarted(place.number, status)
            place.start(self._job)
            return
        last = output.splitlines()[-1:]
        error = WorkerError(
            f"The worker on {place.label} was ended {amount(RESTARTS + 1, 'time')}, "
            f"at last by {status}.{''.join(f'{chr(10)}  {line}' for line in last)}\n"
            "Everything committed is kept; find out what ends it, and continue with --resume.",
            device=place.device,
            worker=str(place.share),
        )
        self._reports.failed(place.number, error)
