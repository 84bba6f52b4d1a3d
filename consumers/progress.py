"""The observers of a build: a live display, plain lines for a pipe, and a log file.

All of them receive the same events: ``scanned``; ``chosen`` for a new store of another collection
than MM-IMDb; ``loading``, ``started``, ``sample``, ``chunk``, ``stopping`` after a stop signal, and
at the end ``finished``, ``interrupted`` or ``failed``, each with its facts as plain values.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consumers.choices import chosen_lines
from featurestore.storage.files import host_name
from featurestore.wording import amount

# Rates are averages over this many seconds, but over at least two chunks: the first chunk is
# faster, because a chunk's texts are embedded while the next chunk is filled.
_WINDOW_S = 60.0
_WINDOW_CHUNKS = 2
REDRAW_S = 0.25


class Meter:
    """Measures rates, and which side is the slower one.

    They start with the first sample: the producers' start would lower the first minute's rates.

    Attributes:
        total: number of samples in the store.
        done: number of samples that are committed or in the current chunk.
        views: number of views per sample.
        filled: number of slots that are ready for the backbones.
        slots: number of slots between producers and backbones.
    """

    def __init__(self) -> None:
        self.total = self.done = self.views = self.filled = self.slots = self._chunk = 0
        self._marks: list[tuple[float, int, float]] = []

    def start(self, facts: Mapping[str, Any]) -> None:
        """Reads the totals of a ``started`` event."""
        self.total, self.done = facts["samples"], facts["done"]
        self.views, self.slots = facts["views"], facts["slots"]
        self._chunk = facts["chunk"]
        self._marks = []

    def sample(self, facts: Mapping[str, Any]) -> None:
        """Counts one sample, or those that an event of a worker process sums up."""
        self.done += facts.get("count", 1)
        self.filled = facts["filled"]
        now = time.monotonic()
        self._marks.append((now, self.done, facts["waited_s"]))
        while (
            len(self._marks) > max(2, _WINDOW_CHUNKS * self._chunk)
            and now - self._marks[0][0] > _WINDOW_S
        ):
            del self._marks[0]

    @property
    def samples_per_s(self) -> float:
        """Samples per second over the window; 0 before the second sample."""
        elapsed = self.over_s
        return (self._marks[-1][1] - self._marks[0][1]) / elapsed if elapsed > 0 else 0.0

    @property
    def over_s(self) -> float:
        """Length of the window in seconds; 0 before the second sample."""
        # The window ends now, not at the last sample: the rate falls while no sample arrives.
        return time.monotonic() - self._marks[0][0] if len(self._marks) > 1 else 0.0

    def facts(self) -> dict[str, Any]:
        """The rate and the slower side, for the log that ``status`` reads."""
        return {
            "samples_per_s": round(self.samples_per_s, 4),
            "over_s": round(self.over_s, 3),
            "slower_side": self.bottleneck,
        }

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at this rate; None if the rate is unknown."""
        rate = self.samples_per_s
        return (self.total - self.done) / rate if rate > 0 else None

    @property
    def bottleneck(self) -> str:
        """The slower side: ``producers`` if backbones mostly wait for them, or ``backbones``."""
        if len(self._marks) < 2:
            return "unknown"
        (t0, _, w0), (t1, _, w1) = self._marks[0], self._marks[-1]
        return "producers" if w1 - w0 > 0.5 * (t1 - t0) else "backbones"

    def line(self) -> str:
        """One line for a log or a pipe."""
        rate, count = self.samples_per_s, f"{self.done:,}/{amount(self.total, 'sample')}"
        if not rate:
            return f"{count}, queue {self.filled}/{self.slots}"
        return (
            f"{count}, {rate:.1f} samples/s, "
            f"{rate * self.views:,.0f} views/s, {clock(self.eta_s)} left, "
            f"queue {self.filled}/{self.slots}, slower side: {self.bottleneck}"
        )


def clock(seconds: float | None) -> str:
    """A duration as hours, minutes and seconds: ``1:02:03``."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class RunLog:
    """Writes every event except ``sample`` as a line of JSON; a full disk does not stop a build.

    The line of a chunk includes the rate that the displays show at that time.
    """

    def __init__(self, folder: Path) -> None:
        """Logs to a new file in ``folder``, which is created when the build has started."""
        self._folder = folder
        self._meter = Meter()
        self._waiting: list[bytes] = []
        self._file: IO[bytes] | None = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        if event == "sample":
            self._meter.sample(facts)
            return
        if event == "waiting":
            return
        if event == "started":
            self._meter.start(facts)
        if event == "chunk":
            facts = {**facts, **self._meter.facts()}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._waiting.append(json.dumps({"time": now, "event": event, **facts}).encode() + b"\n")
        try:
            # Before this event the store may not exist: a refused build must not create files.
            if event == "started":
                self._file = self._path().open("xb", buffering=0)
            if self._file is not None:
                self._file.write(b"".join(self._waiting))
                self._waiting.clear()
        except OSError:
            self.close()

    def _path(self) -> Path:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return self._folder / f"{stamp}-{host_name()}-{os.getpid()}.log"

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()
        self._file = None


class PlainDisplay:
    """Plain lines for pipes and log files, at most one every ``interval_s`` seconds.

    With an interval of 0, each chunk and each bad input has a line.
    """

    def __init__(self, stream: IO[str], interval_s: float = 10.0) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._meter = Meter()
        self._last = float("-inf")
        self._waits = False

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        if event == "chosen":
            for line in chosen_lines(facts):
                self._print(line)
        elif event == "waiting" and not self._waits:
            self._waits = True
            self._print(_waiting_line(facts))
        elif event == "loading":
            self._print(f"loading the backbones on {facts['device']}")
        elif event == "started":
            self._meter.start(facts)
            self._last = time.monotonic()
            self._print(_start_line(facts))
            for notice in facts["notices"]:
                self._print(notice)
        elif event == "stopping":
            self._print(stopping_line(facts))
        elif event == "sample":
            self._meter.sample(facts)
        # Samples also trigger a line: on a busy machine a chunk takes minutes.
        if event == "chunk" or (event == "sample" and self._interval_s):
            self._print_rate()
        if event == "chunk" and self._interval_s == 0:
            for index, modality, reason, detail in facts["bad"]:
                self._print(f"sample {index}: {modality} {reason} ({detail})")

    def _print_rate(self) -> None:
        if time.monotonic() - self._last >= self._interval_s:
            self._last = time.monotonic()
            self._print(self._meter.line())

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Does nothing: each line is written at once."""


class LiveDisplay:
    """Two live lines on a terminal: progress bar, rates, time left, queue and slower side."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._meter = Meter()
        self._live: Live | None = None
        self._drawn = 0.0
        self._waits = False

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        if event == "chosen":
            for line in chosen_lines(facts):
                self._console.print(line, markup=False, highlight=False)
        elif event == "waiting" and not self._waits:
            self._waits = True
            self._console.print(_waiting_line(facts), style="dim")
        elif event == "loading":
            self._console.print(f"loading the backbones on {facts['device']} …", style="dim")
        elif event == "started":
            self._start(facts)
        elif event == "sample":
            self._meter.sample(facts)
            self._redraw()
        elif event == "chunk":
            self._redraw()
        elif event == "stopping":
            self._console.print(stopping_line(facts), style="yellow")
        elif event == "finished":
            self.close()

    def _start(self, facts: Mapping[str, Any]) -> None:
        self._meter.start(facts)
        self._console.print(_start_line(facts))
        for notice in facts["notices"]:
            self._console.print(notice, style="yellow")
        if facts["done"] < facts["samples"]:
            self._live = Live(self._lines(), console=self._console, auto_refresh=False)
            self._live.start()

    def _redraw(self) -> None:
        # Drawn by the main loop, so that no thread is needed, but not for every sample.
        if self._live is not None and time.monotonic() - self._drawn >= REDRAW_S:
            self._drawn = time.monotonic()
            self._live.update(self._lines(), refresh=True)

    def _lines(self) -> Group:
        """The progress display: a bar with the time left, and the rates; 80 columns at most."""
        meter = self._meter
        first = Table.grid(padding=(0, 2))
        first.add_row(
            ProgressBar(total=max(1, meter.total), completed=meter.done, width=40),
            f"{meter.done:,}/{meter.total:,}, {clock(meter.eta_s)} left",
        )
        rate = meter.samples_per_s
        second = (
            f"{rate:.1f} samples/s, {rate * meter.views:,.0f} views/s, "
            f"queue {meter.filled}/{meter.slots}, slower side: {meter.bottleneck}"
        )
        return Group(first, Text(second, style="dim"))

    def close(self) -> None:
        """Leaves the last state on the screen, and shows the cursor again."""
        if self._live is not None:
            self._live.update(self._lines(), refresh=True)
            self._live.stop()
            self._live = None


def _waiting_line(facts: Mapping[str, Any]) -> str:
    """What a worker waits for."""
    if facts["alone"]:
        return "waiting until the other workers have ended"
    return "waiting for another worker, which creates the store"


def stopping_line(facts: Mapping[str, Any]) -> str:
    """The acknowledgement of a stop signal."""
    name = facts["signal"]
    if name == "SIGINT":
        return "Stopping after the current chunk; press Ctrl-C again to give it up."
    return f"Stopping after the current chunk, on {name}; a second {name} gives it up."


def _start_line(facts: Mapping[str, Any]) -> str:
    features = ", ".join(f"{name} [{dim}]" for name, dim in facts["features"].items())
    done = f", {amount(facts['done'], 'sample')} done" if facts["done"] else ""
    return (
        f"{amount(facts['samples'], 'sample')} x {amount(facts['views'], 'view')}"
        f"{done}: {features}; "
        f"{amount(facts['producers'], 'producer')}, {amount(facts['slots'], 'slot')}, "
        f"{amount(facts['threads'], 'compute thread')}"
    )
