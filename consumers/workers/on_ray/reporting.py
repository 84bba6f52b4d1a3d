"""What a worker reports to a process on another machine, and how that process stops it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from featurestore.errors import InterruptedBuildError

# Time between two reports, in seconds.
_BEAT_S = 0.5
# Events after which a worker does not build any more.
_ENDS = ("finished", "interrupted", "failed")

Event = tuple[str, Mapping[str, Any]]


class Reporter:
    """Reports the events of this process's build; an observer, and a context manager.

    A thread sends them, because a build may compute for minutes between two events. The answer says
    whether the build is to stop: this process then gets the first stop signal, and finishes its
    chunk.

    Args:
        post: function that sends events, whose first has the given number, and returns whether the
            build is to stop; it may raise anything.
    """

    def __init__(self, post: Callable[[int, Sequence[Event]], bool]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._number = 0
        self._events: list[Event] = []
        self._plain = signal.getsignal(signal.SIGTERM)
        self._stops = self._has_started = self.has_signalled = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event of the build.

        Raises:
            InterruptedBuildError: the build is to stop, and has not started yet.
        """
        self._has_started |= event == "started"
        with self._lock:
            if event == "sample":
                # One event for all samples since the last report.
                count = 1
                if self._events and self._events[-1][0] == "sample":
                    count += self._events.pop()[1]["count"]
                facts = {**facts, "count": count}
            self._events.append((event, facts))
        if self._stops and not self._has_started and event not in _ENDS:
            raise InterruptedBuildError(signal.SIGTERM, "Stopped before anything was built.")

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        is_last = False
        while True:
            # Whatever the connection raises: the build does not depend on its reports.
            with suppress(Exception):
                self._send()
            if is_last:
                return
            self._signal_once()
            is_last = self._ended.wait(_BEAT_S)

    def _send(self) -> None:
        with self._lock:
            events = list(self._events)
            self._events.clear()
        try:
            self._stops |= self._post(self._number, events)
        except BaseException:
            with self._lock:
                self._events[:0] = events
            raise
        self._number += len(events)

    def _signal_once(self) -> None:
        # A build handles the signal once it has started; before that, its next event stops it.
        if self._stops and not self.has_signalled:
            if signal.getsignal(signal.SIGTERM) is self._plain:
                return
            self.has_signalled = True
            os.kill(os.getpid(), signal.SIGTERM)
