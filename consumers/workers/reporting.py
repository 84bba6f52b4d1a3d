"""What a worker says to the process that started it, wherever that is, and how it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from featurestore.errors import InterruptedBuildError

# Time between two reports, in seconds.
BEAT_S = 0.5
# Events after which a worker does not build any more.
_ENDS = ("finished", "interrupted", "failed")


class Reporter:
    """Reports the state of this worker again and again; an observer of its build.

    A report replaces the one before, so that a lost or repeated report does no harm. A thread sends
    them, because a build may compute for minutes between two events. The answer says whether the
    build is to stop: the first stop signal is then sent to this process, which finishes its chunk.

    Args:
        post: function that sends a report and returns whether the build is to stop.
    """

    def __init__(self, post: Callable[[Mapping[str, Any]], bool]) -> None:
        self._post = post
        self._facts: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "event": "",
            "started": None,
            "samples": 0,
            "committed": 0,
            "waited_s": 0.0,
            "filled": 0,
        }
        self.scanned: dict[str, Any] = {}
        self._plain = signal.getsignal(signal.SIGTERM)
        self._stops = self.has_signalled = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event of the build.

        Raises:
            InterruptedBuildError: the build is to stop, and has not started yet.
        """
        if event == "scanned":
            self.scanned = dict(facts)
        elif event in ("chosen", "loading", "started"):
            self._facts[event] = dict(facts)
        elif event == "sample":
            self._facts |= {"filled": facts["filled"], "waited_s": facts["waited_s"]}
            self._facts["samples"] += 1
        elif event == "chunk":
            self._facts["committed"] += facts["samples"]
        if event not in ("sample", "chunk"):
            self._facts["event"] = event
        if self._stops and self._facts["started"] is None and event not in _ENDS:
            raise InterruptedBuildError(signal.SIGTERM, "Stopped before anything was built.")

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            # Whatever the connection raises: the build does not depend on it.
            with suppress(Exception):
                self._stops |= self._post(dict(self._facts))
            if self._ended.wait(BEAT_S):
                return
            self._signal_once()

    def _signal_once(self) -> None:
        # A build handles the signal from its start on; before that the next event stops it.
        if self._stops and not self.has_signalled:
            if signal.getsignal(signal.SIGTERM) is self._plain:
                return
            self.has_signalled = True
            os.kill(os.getpid(), signal.SIGTERM)
