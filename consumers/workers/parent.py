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
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import wait
from typing import IO, Any

from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from consumers.device.devices import resolve_devices
from consumers.stopping import Notifier, stop_signals
from consumers.workers.outcome import Outcome
from consumers.workers.places import Place, make_places
from consumers.workers.transport import config_values, error_of
from featurestore.errors import (
    InterruptedBuildError,
    ManyViewsError,
    ManyViewsWarning,
    WorkerError,
)
from featurestore.wording import amount, first_line
from producers.crew import POLL_S
from producers.process import END_S, end_all, temporary_file

# Number of times that a killed worker is started again on its device.
RESTARTS = 3
# Time between two looks at the store, in seconds.
_LOOK_S = 2.0


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
        self._outcome = Outcome(config.store)
        self._errors: list[tuple[Place, Exception]] = []
        self._restarted: Counter[str] = Counter()
        self._once: set[str] = set()
        self._chunks: dict[int, int] = {}
        self._times: list[float] = []
        # Samples of the store that were done when the first worker started to build.
        self._done = sys.maxsize
        self._is_only_machine = config.worker is None

    def execute(self) -> BuildReport:
        """Starts the workers, waits until the store is complete, and returns the report."""
        self._notify("workers", labels=[place.label for place in self._places])
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
        # Before a worker has started to build, the store is as it was, maybe complete.
        store = self._outcome.settled() if "started" in self._once else None
        if store is None:
            raise self._failure(stopped)
        report = self._report(BuildReport(store.path, store.spec.samples, store.spec.views))
        self._outcome.describe(report, store)
        self._notify("finished", **report.facts())
        return report

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
        looked_s = ended_s = time.monotonic()
        while self._running:
            if stopped:  # a worker that was started again meanwhile has not received it
                self._relay_once(stopped[0])
            ended = self._receive(stopping=bool(stopped))
            now = time.monotonic()
            if "started" in self._once and (ended or now - looked_s >= _LOOK_S):
                looked_s = now
                self._notify("committed", **self._outcome.look())
            if not self._outcome.is_complete:
                ended_s = now
            elif now - ended_s >= END_S:
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
            place.tallies[-1].read(message["report"])
        elif "error" in message:
            place.has_ended = True
            error = error_of(message["error"], f"The worker on {place.label}")
            self._errors.append((place, error))
            if not isinstance(error, InterruptedBuildError):
                self._tell(place, "ended", {"error": str(error)})
        else:
            self._happened(place, message["event"], message["facts"])

    def _happened(self, place: Place, event: str, facts: Mapping[str, Any]) -> None:
        """Passes an event of a worker on: for all workers once, and for its own line."""
        if event in ("scanned", "chosen", "started") and event not in self._once:
            self._once.add(event)
            self._notify(event, **facts)
        if event == "started":
            self._times.append(time.monotonic())
            self._done = min(self._done, facts["done"])
        elif event == "chunk":
            self._notify("committed", **self._outcome.look())
            self._times.append(time.monotonic())
            place.tallies[-1].read(facts)
            if facts["chunk"] not in self._chunks:
                self._chunks[facts["chunk"]] = facts["samples"]
                self._notify("chunk", **{**facts, "built": sum(self._chunks.values())})
        self._tell(place, event, facts)

    def _tell(self, place: Place, event: str, facts: Mapping[str, Any]) -> None:
        self._notify("worker", place=place.number, label=place.label, what=event, facts=facts)

    def _ended(self, place: Place, *, stopping: bool) -> None:
        """Starts a killed worker again; not one that ended by itself."""
        assert place.child is not None
        status, output = place.child.end()
        place.child = None
        if place.has_ended or stopping or self._outcome.is_complete:
            return
        status = status or "does not end"
        if place.restarts < RESTARTS:
            place.restarts += 1
            self._restarted[status] += 1
            self._tell(place, "restarted", {"cause": status, "restarts": place.restarts})
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
        self._errors.append((place, error))
        self._tell(place, "ended", {"error": str(error)})

    def _failure(self, stopped: list[int]) -> Exception:
        """The error of a build whose store is not complete."""
        if stopped:
            return self._outcome.interrupted(stopped[0])
        failed = [each for each in self._errors if not _is_refusal(each[1])] or self._errors
        if not failed:
            return WorkerError("All workers have ended, and the store is not complete.")
        first, error = failed[0]
        others = [
            f"{place.label}: {first_line(other)}"
            for place, other in self._errors
            if place is not first and type(other) is not type(error)
        ]
        for note in others[:1]:
            error.add_note(note)
        return error

    def _report(self, report: BuildReport) -> BuildReport:
        tallies = [tally for place in self._places for tally in place.tallies]
        report.built = sum(self._chunks.values())
        if self._restarted and self._is_only_machine:
            # A killed worker may have committed a chunk without reporting it.
            report.built = report.samples - self._done
        last = max(self._times) if self._chunks else time.monotonic()
        report.seconds = last - min(self._times, default=last)
        report.waited_s = sum(tally.waited_s for tally in tallies) / len(self._places)
        for tally in tallies:
            report.truncated += tally.truncated
            report.replaced += tally.replaced
        report.restarted = self._restarted
        return report


def _is_refusal(error: Exception) -> bool:
    """Whether a worker refused to build, so that others may complete the store."""
    return isinstance(error, ManyViewsError) and error.exit_code == 2
