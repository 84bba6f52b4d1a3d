"""Displays of a build on several devices: a line for all workers, and one for each.

They receive the events of the parent process: ``connecting`` if it connects to Ray; ``workers``
with a label for each; ``scanned``, ``chosen``, ``started`` and ``chunk`` as from one process;
``worker`` with the label, and what an event of one worker says; ``committed`` after each look at
the store; ``stopping``, and at the end ``finished``, ``interrupted`` or ``failed``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from consumers.choices import chosen_lines
from consumers.progress import REDRAW_S, Meter, clock, stopping_line
from featurestore.wording import amount, first_line

# Events of a worker that change what its line says, besides those that are counted.
_STATES = {
    "scanned": "starting",
    "waiting": "waiting for another worker",
    "loading": "loading the backbones",
    "finished": "done",
    "interrupted": "stopped",
}


@dataclass(slots=True)
class Line:
    """What the display says about one worker.

    Attributes:
        label: its device and number.
        state: what it does, in words; empty while it builds.
        meter: its rates.
        chunks: number of chunks that it has committed.
    """

    label: str
    state: str = "starting"
    meter: Meter = field(default_factory=Meter)
    chunks: int = 0

    def read(self, what: str, facts: Mapping[str, Any]) -> None:
        """Reads an event of the worker."""
        self.state = _STATES.get(what, self.state)
        if what == "started":
            self.state = ""
            self.meter.start(facts)
        elif what == "sample":
            self.meter.sample(facts)
        elif what == "chunk":
            self.chunks += 1
        elif what == "restarted":
            self.state = "starting again"
        elif what == "ended":
            self.state = f"ended: {first_line(facts['error'])}"

    @property
    def rate(self) -> float:
        """Samples per second; 0 while it does not build."""
        return 0.0 if self.state else self.meter.samples_per_s

    def text(self) -> str:
        """One line."""
        done = f"{amount(self.chunks, 'chunk')}"
        if self.state:
            return f"{self.label}: {self.state}" + (f", {done}" if self.chunks else "")
        meter = self.meter
        return (
            f"{self.label}: {self.rate:.1f} samples/s, {done}, "
            f"queue {meter.filled}/{meter.slots}, slower side: {meter.bottleneck}"
        )


class Board:
    """The lines of all workers, and their sum."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.total = self.done = self._views = 0
        # Time and samples done at the first look, for the rate of all machines together.
        self._first: tuple[float, int] | None = None

    def read(self, event: str, facts: Mapping[str, Any]) -> None:
        """Reads an event."""
        if event == "workers":
            self.lines = [Line(label) for label in facts["labels"]]
        elif event == "started":
            self.total, self.done, self._views = facts["samples"], facts["done"], facts["views"]
        elif event == "committed" and facts["samples"]:
            self.done = facts["done"]
            self._first = self._first or (time.monotonic(), self.done)
        elif event == "worker":
            self.lines[facts["place"]].read(facts["what"], facts["facts"])

    @property
    def rate(self) -> float:
        """Samples per second of all workers of this machine."""
        return sum(line.rate for line in self.lines)

    @property
    def left(self) -> str:
        """The time left, with the workers of other machines."""
        since, done = self._first or (0.0, self.done)
        rate = max(self.rate, (self.done - done) / max(1.0, time.monotonic() - since))
        return f"{clock((self.total - self.done) / rate if rate else None)} left"

    def text(self) -> str:
        """The line of all workers."""
        rate, count = self.rate, f"{self.done:,}/{amount(self.total, 'sample')}"
        if not rate:
            return count
        return f"{count}, {rate:.1f} samples/s, {rate * self._views:,.0f} views/s, {self.left}"


def news(event: str, facts: Mapping[str, Any]) -> list[str]:
    """What an event says that is worth a line of its own."""
    if event == "chosen":
        return chosen_lines(facts)
    if event == "stopping":
        return [stopping_line(facts)]
    if event == "connecting":
        return [_connecting_line(facts["address"])]
    if event != "worker":
        return []
    label, own = facts["label"], facts["facts"]
    if facts["what"] == "started":
        return [_start_line(label, own), *(f"{label}: {notice}" for notice in own["notices"])]
    if facts["what"] == "loading":
        return [f"{label}: loading the backbones"]
    if facts["what"] == "restarted":
        return [f"{label}: started again after {own['cause']}"]
    if facts["what"] == "ended":
        return [f"{label} ended: {first_line(own['error'])}"]
    return []


def _connecting_line(address: str) -> str:
    if address == "local":
        return "starting Ray on this machine, which takes some seconds"
    return f"connecting to the Ray cluster at {address}"


def _start_line(label: str, facts: Mapping[str, Any]) -> str:
    done = f", {facts['done']:,} done" if facts["done"] else ""
    return (
        f"{label}: {amount(facts['samples'], 'sample')} x {amount(facts['views'], 'view')}{done}; "
        f"{amount(facts['producers'], 'producer')}, {amount(facts['slots'], 'slot')}, "
        f"{amount(facts['threads'], 'compute thread')}"
    )


class PlainDevices:
    """Plain lines for pipes and log files: all lines, at most once every ``interval_s`` seconds.

    With an interval of 0, each chunk and each bad input has a line.
    """

    def __init__(self, stream: IO[str], interval_s: float = 10.0) -> None:
        self._stream, self._interval_s = stream, interval_s
        self._board = Board()
        self._last = time.monotonic()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        self._board.read(event, facts)
        for line in news(event, facts):
            self._print(line)
        if event == "worker" and facts["what"] == "chunk" and not self._interval_s:
            own = facts["facts"]
            self._print(f"{facts['label']}: chunk {own['chunk']}; {self._board.text()}")
            for index, modality, reason, detail in own["bad"]:
                self._print(f"sample {index}: {modality} {reason} ({detail})")
        if self._interval_s and time.monotonic() - self._last >= self._interval_s:
            self._last = time.monotonic()
            for line in [self._board.text(), *(each.text() for each in self._board.lines)]:
                self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Does nothing: each line is written at once."""


class LiveDevices:
    """Live lines on a terminal: a bar for the store, the rates, and a line for each worker."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._board = Board()
        self._live: Live | None = None
        self._drawn = 0.0

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Receives an event."""
        self._board.read(event, facts)
        for line in news(event, facts):
            self._console.print(line, markup=False, highlight=False, style="dim")
        if event == "workers":
            self._live = Live(self._drawing(), console=self._console, auto_refresh=False)
            self._live.start()
        elif event in ("finished", "failed", "interrupted"):
            self.close()
        elif self._live is not None and time.monotonic() - self._drawn >= REDRAW_S:
            self._drawn = time.monotonic()
            self._live.update(self._drawing(), refresh=True)

    def _drawing(self) -> Group:
        board = self._board
        first = Table.grid(padding=(0, 2))
        first.add_row(
            ProgressBar(total=max(1, board.total), completed=board.done, width=40),
            f"{board.done:,}/{board.total:,}, {board.left}",
        )
        texts = [board.text(), *(line.text() for line in board.lines)]
        lines = [Text(t, style="dim", no_wrap=True, overflow="ellipsis") for t in texts]
        return Group(first, *lines)

    def close(self) -> None:
        """Leaves the last state on the screen, and shows the cursor again."""
        if self._live is not None:
            self._live.update(self._drawing(), refresh=True)
            self._live.stop()
            self._live = None
