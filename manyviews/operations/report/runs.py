"""Throughput from the run logs. They prove nothing and may be torn: nothing in them is trusted."""

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
    """What the logs tell of all runs, put end to end.

    Attributes:
        hours: hours of making samples up to the end of each chunk; runs follow one another.
        samples_per_s: samples per second of the same chunk.
        waiting: share of the chunk's time in which the backbones waited for producers, in [0, 1].
        starts: hours at which a run began.
        skipped: lines and files that could not be used.
    """

    hours: list[float] = field(default_factory=list)
    samples_per_s: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    skipped: int = 0

    @property
    def runs(self) -> int:
        """Runs that made something."""
        return len(self.starts)


def throughput(store: Path) -> Throughput:
    """Reads the logs of a store; empty where there are none."""
    found = Throughput()
    for path in sorted((store / RUNS).glob("*.log")):
        _add_run(path, found)
    return found


def _add_run(path: Path, found: Throughput) -> None:
    """Adds the chunks of one run."""
    before = (0.0, 0.0, 0.0)  # built, seconds, waited
    offset = found.hours[-1] if found.hours else 0.0
    for line in _lines(path, found):
        now = _chunk(line)
        if now is None:
            continue
        built, seconds, waited = (b - a for a, b in zip(before, now, strict=True))
        if built <= 0 or seconds <= 0:
            found.skipped += 1
            continue
        if before == (0.0, 0.0, 0.0):
            found.starts.append(offset)
        before = now
        found.hours.append(offset + now[1] / 3600)
        found.samples_per_s.append(built / seconds)
        found.waiting.append(min(1.0, max(0.0, waited / seconds)))


def _lines(path: Path, found: Throughput) -> list[dict[str, Any]]:
    """The log's objects; a killed build leaves half a line."""
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_BYTES:
            raise ValueError("not a log that a build wrote")
        texts = path.read_bytes().splitlines()
    except (OSError, ValueError):
        found.skipped += 1
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
            found.skipped += 1
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
