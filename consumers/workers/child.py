"""A worker process that a parent started: it builds on one device and reports what happens.

It starts like a producer, by the script ``producers.parent``, and follows its parent: it ends when
the parent ends, ignores stop signals, and stops on those that the parent relays.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from consumers.build import build
from consumers.progress import RunLog
from consumers.stopping import follow_relayed
from consumers.workers.transport import config_of, error_values
from featurestore.errors import ManyViewsWarning
from featurestore.storage.store import RUNS
from producers.serving import limit_output

# Samples are reported at most once in this time, in seconds.
_REPORT_S = 0.1


class Reporter:
    """Sends the events of a build to the parent process, as lines of JSON.

    Events are of the main thread only; warnings of any thread are sent with the next event.
    """

    def __init__(self, results: Connection) -> None:
        self._results = results
        self._warnings: deque[str] = deque()
        self._samples = 0
        self._sent_s = float("-inf")

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        if event == "sample":
            self._samples += 1
            if time.monotonic() - self._sent_s < _REPORT_S:
                return
            facts = {**facts, "count": self._samples}
            self._samples, self._sent_s = 0, time.monotonic()
        if event == "chunk":
            limit_output()
        self.send({"event": event, "facts": facts})

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message, after the warnings that were issued before it."""
        while self._warnings:
            self._send({"warning": self._warnings.popleft()})
        self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._results.send_bytes(json.dumps(message, default=str).encode("ascii"))

    def show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002  the signature of warnings.showwarning
        line: str | None = None,
    ) -> None:
        """Keeps this project's warnings for the parent; prints others to the kept output."""
        if issubclass(category, ManyViewsWarning):
            self._warnings.append(str(message))
        else:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def main(arguments: Sequence[str]) -> None:
    """Builds the share that the parent sends.

    Args:
        arguments: numbers of the inherited descriptors: the job, the pipe of tasks, and the pipe of
            results.
    """
    follow_relayed()
    job_fd, tasks_fd, results_fd = map(int, arguments)
    results = Connection(results_fd, readable=False)
    report = Reporter(results)
    warnings.showwarning = report.show_warning
    try:
        job = json.loads(os.pread(job_fd, os.fstat(job_fd).st_size, 0))
        task = json.loads(Connection(tasks_fd, writable=False).recv_bytes())
        # Adapters of the user are found where the parent finds them, after everything else.
        sys.path += [place for place in job["path"] if place not in sys.path]
        config = config_of(job["config"] | task)
        log = RunLog(Path(config.store) / RUNS)
        try:
            built = build(config, [log, report])
        finally:
            log.close()
        report.send({"report": built.facts()})
    except BaseException as error:  # noqa: BLE001  the parent raises it
        report.send({"error": error_values(error)})
