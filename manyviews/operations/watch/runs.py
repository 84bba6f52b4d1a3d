"""What the newest log of a store's builds says: how fast it is, and how it ended.

A build has one rate. While it runs, that is the one which it displays itself, and which it writes
to its log with each chunk (``consumers.progress.Meter``); once it has ended, all its samples in all
its time, as its last line says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ENDS = ("finished", "interrupted", "failed")


@dataclass(frozen=True, slots=True)
class _Mark:
    """The newest committed chunk: when, the run's totals until then, and its rate."""

    time: datetime
    built: int
    seconds: float
    samples_per_s: float
    over_s: float
    slower_side: str


@dataclass(slots=True)
class Run:
    """One build, as far as its log goes.

    Attributes:
        pid: the process that wrote it.
        started: the facts of its start; empty where it has none.
        end: ``finished``, ``interrupted`` or ``failed``; ``""`` while it runs, and for ever where
            it was killed.
        why: what ended it, in words.
    """

    pid: int
    started: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""
    why: str = ""
    _chunks: int = 0
    _last: _Mark | None = None

    @property
    def built(self) -> int:
        """Samples that it has committed."""
        return 0 if self._last is None else self._last.built

    def take(self, line: bytes) -> None:
        """Takes one line of the log; one that is torn or foreign says nothing."""
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            facts = json.loads(line)
            event = facts["event"]
            if event == "started":
                self.started = facts
            elif event == "chunk":
                self._last = _Mark(
                    datetime.fromisoformat(facts["time"]),
                    int(facts["built"]),
                    float(facts["seconds"]),
                    float(facts["samples_per_s"]),
                    float(facts["over_s"]),
                    str(facts["slower_side"]),
                )
                self._chunks += 1
            elif event in _ENDS:
                self.end, self.why = event, str(facts.get("error", ""))

    def samples_per_s(self, now: datetime | None = None) -> float:
        """Samples per second; 0 where nothing is known.

        Args:
            now: of a build that runs: the rate of its last minute, which falls while nothing comes.
                None for one that has ended: of all of it.
        """
        last = self._last
        if last is None or last.seconds <= 0:
            return 0.0
        if now is None or last.samples_per_s <= 0:
            return last.built / last.seconds
        late = max(0.0, _since(last, now) - last.seconds / self._chunks)
        return last.samples_per_s * last.over_s / (last.over_s + late)

    def eta_s(self, left: int, now: datetime) -> float | None:
        """Seconds until ``left`` more samples are committed; None where nothing is known."""
        rate = self.samples_per_s(now)
        if self._last is None or not rate:
            return None
        return max(0.0, left / rate - _since(self._last, now))

    @property
    def bottleneck(self) -> str:
        """``producers`` where the backbones wait for them most of the time, else ``backbones``."""
        return "unknown" if self._last is None else self._last.slower_side


def _since(mark: _Mark, now: datetime) -> float:
    # Clocks of two machines may disagree.
    return max(0.0, (now - mark.time).total_seconds())


def newest_run(folder: Path) -> Run | None:
    """Reads the newest log in a store's ``records/runs``; None where there is none.

    Logs are named by the time of their start and the process. They decide nothing: one that cannot
    be read is the same as none.
    """
    try:
        path = max((p for p in folder.iterdir() if p.suffix == ".log"), key=lambda p: p.name)
        run = Run(int(path.stem.rpartition("-")[2]))
        lines = path.read_bytes().split(b"\n")
    except (OSError, ValueError):
        return None
    for line in lines[:-1]:  # the last one is empty, or not yet whole
        run.take(line)
    return run


def utc_now() -> datetime:
    """Now."""
    return datetime.now(UTC)
