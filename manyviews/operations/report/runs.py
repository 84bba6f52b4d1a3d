"""Throughput from the run logs, which may be torn: no value is trusted without a check."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.storage.store import RUNS

_MOST_BYTES = 64 << 20


@dataclass(slots=True)
class Throughput:
    """The logged throughput of all runs, one after the other, without the pauses between them.

    Attributes:
        hours: hours of computation up to the end of each chunk.
        samples_per_s: samples per second of each chunk.
        waiting: share of each chunk's time in which the backbones waited for producers, 0 to 1.
        starts: hours at which the runs started.
        skipped: number of lines and files that could not be read.
    """

    hours: list[float] = field(default_factory=list)
    samples_per_s: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    skipped: int = 0

    @property
    def runs(self) -> int:
        """Number of runs that built a chunk."""
        return len(self.starts)


def throughput(store: Path) -> Throughput:
    """Reads the logs of a store; the result is empty if there are none."""
    logged = Throughput()
    for path in sorted((store / RUNS).glob("*.log")):
        _add_run(path, logged)
    return logged


def _add_run(path: Path, logged: Throughput) -> None:
    """Adds the chunks of one run."""
    before = (0.0, 0.0, 0.0)  # built, seconds, waited
    offset = logged.hours[-1] if logged.hours else 0.0
    for line in _lines(path, logged):
        now = _chunk(line)
        if now is None:
            continue
        built, seconds, waited = (b - a for a, b in zip(before, now, strict=True))
        if built <= 0 or seconds <= 0:
            logged.skipped += 1
            continue
        if before == (0.0, 0.0, 0.0):
            logged.starts.append(offset)
        before = now
        logged.hours.append(offset + now[1] / 3600)
        logged.samples_per_s.append(built / seconds)
        logged.waiting.append(min(1.0, max(0.0, waited / seconds)))


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
