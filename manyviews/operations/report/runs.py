"""Throughput from the run logs, which may be torn: no value is trusted without a check."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.storage.store import RUNS

_MOST_BYTES = 64 << 20
# Pause before a run whose log does not say when it was, in seconds.
_PAUSE_S = 1.0


@dataclass(slots=True)
class Throughput:
    """The logged throughput of all runs together, without the pauses in which none was building.

    The rates of runs at the same time, of several workers, are added up: a value holds from one end
    of a chunk, of whichever run, to the next.

    Attributes:
        hours: hours of computation up to the end of each value.
        samples_per_s: samples per second of all runs.
        waiting: share of the time in which the backbones waited for producers, 0 to 1; the mean of
            the runs.
        starts: hours at which a run started while no other one was building.
        chunks: number of chunks that were built.
        runs: number of runs that built a chunk.
        skipped: number of lines and files that could not be read.
    """

    hours: list[float] = field(default_factory=list)
    samples_per_s: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    chunks: int = 0
    runs: int = 0
    skipped: int = 0


class _Span(NamedTuple):
    """The time of one chunk in a run: its start and end in seconds, its rate, and its waiting."""

    start: float
    end: float
    samples_per_s: float
    waiting: float


def throughput(store: Path) -> Throughput:
    """Reads the logs of a store; the result is empty if there are none."""
    logged = Throughput()
    spans: list[_Span] = []
    for path in sorted((store / RUNS).glob("*.log")):
        run = _run(path, logged, max((span.end for span in spans), default=-_PAUSE_S) + _PAUSE_S)
        logged.chunks += len(run)
        logged.runs += bool(run)
        spans += run
    _add_up(spans, logged)
    return logged


def _run(path: Path, logged: Throughput, default_s: float) -> list[_Span]:
    """The chunks of one run, which starts at ``default_s`` if its log does not say when."""
    before = (0.0, 0.0, 0.0)  # built, seconds, waited
    start: float | None = None
    spans = []
    for line in _lines(path, logged):
        now = _chunk(line)
        if now is None:
            continue
        built, seconds, waited = (b - a for a, b in zip(before, now, strict=True))
        if built <= 0 or seconds <= 0:
            logged.skipped += 1
            continue
        if start is None:
            ended = _time(line)
            start = default_s if ended is None else ended - now[1]
        share = min(1.0, max(0.0, waited / seconds))
        # The clock may be set during a run, whose own seconds count on.
        spans.append(_Span(start + before[1], start + now[1], built / seconds, share))
        before = now
    return spans


def _add_up(spans: Sequence[_Span], logged: Throughput) -> None:
    """Adds the sums of the spans, from each end to the next one, in order."""
    waiting = deque(sorted(spans))
    running: list[_Span] = []
    moments = sorted({moment for span in spans for moment in span[:2]})
    seconds = 0.0
    for start, end in pairwise(moments):
        was_idle = not running
        running = [span for span in running if span.end > start]
        while waiting and waiting[0].start <= start:
            running.append(waiting.popleft())
        if not running:
            continue
        if was_idle:
            logged.starts.append(seconds / 3600)
        seconds += end - start
        logged.hours.append(seconds / 3600)
        logged.samples_per_s.append(sum(span.samples_per_s for span in running))
        logged.waiting.append(sum(span.waiting for span in running) / len(running))


def _lines(path: Path, logged: Throughput) -> list[dict[str, Any]]:
    """The JSON objects of a log; skips torn lines, which a killed build leaves."""
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("a build does not write such a log")
        texts = path.read_bytes().splitlines()
    except (OSError, ValueError):
        logged.skipped += 1
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            logged.skipped += 1
    return lines


def _chunk(line: dict[str, Any]) -> tuple[float, float, float] | None:
    """Samples built, seconds and seconds waited at the end of a chunk; None for other events."""
    if line.get("event") != "chunk":
        return None
    values = [line.get(name) for name in ("built", "seconds", "waited_s")]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < 3 or not all(math.isfinite(n) and 0 <= n < 1e12 for n in numbers):
        return None
    return numbers[0], numbers[1], numbers[2]


def _time(line: dict[str, Any]) -> float | None:
    """The time of an event in seconds; None if the line has none."""
    try:
        return datetime.fromisoformat(line["time"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
