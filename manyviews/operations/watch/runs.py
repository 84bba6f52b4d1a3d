"""Read the newest run log of a store: the rate of the build, and how it ended.

The rate of a running build is the one that it displays, and logs with each chunk
(``consumers.progress.Meter``). The rate of a build that has ended is its number of samples over its
duration, as in its last line.
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
    """The newest committed chunk: its time, the run's totals until then, and its rate."""

    time: datetime
    built: int
    seconds: float
    samples_per_s: float
    over_s: float
    slower_side: str


@dataclass(slots=True)
class Run:
    """One build according to its log.

    Attributes:
        pid: id of the process that wrote the log.
        started: the facts of the ``started`` event; empty if it was not logged.
        end: ``finished``, ``interrupted`` or ``failed``; ``""`` while it runs, or if it was killed.
        why: the error message that ended it, or ``""``.
    """

    pid: int
    started: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""
    why: str = ""
    _chunks: int = 0
    _last: _Mark | None = None

    @property
    def built(self) -> int:
        """Number of samples that it has committed."""
        return 0 if self._last is None else self._last.built

    def take(self, line: bytes) -> None:
        """Reads one line of the log; ignores a line that is torn or unknown."""
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
        """Samples per second; 0 if not known.

        Args:
            now: the current time, for the rate of a running build over its last minute, which
                falls while no chunk is committed; None for the rate over the whole build.
        """
        last = self._last
        if last is None or last.seconds <= 0:
            return 0.0
        if now is None or last.samples_per_s <= 0:
            return last.built / last.seconds
        late = max(0.0, _since(last, now) - last.seconds / self._chunks)
        return last.samples_per_s * last.over_s / (last.over_s + late)

    def eta_s(self, left: int, now: datetime) -> float | None:
        """Seconds until ``left`` more samples are committed; None if not known."""
        rate = self.samples_per_s(now)
        if self._last is None or not rate:
            return None
        return max(0.0, left / rate - _since(self._last, now))

    @property
    def bottleneck(self) -> str:
        """``producers`` if the backbones wait for them most of the time, else ``backbones``."""
        return "unknown" if self._last is None else self._last.slower_side


def _since(mark: _Mark, now: datetime) -> float:
    # The clocks of two machines may differ: never negative.
    return max(0.0, (now - mark.time).total_seconds())


def newest_run(folder: Path) -> Run | None:
    """Reads the newest log in a store's ``records/runs``; None if there is none.

    A log's name is its start time and process id. Logs are informative only: an unreadable log
    counts as none.
    """
    try:
        path = max((p for p in folder.iterdir() if p.suffix == ".log"), key=lambda p: p.name)
        run = Run(int(path.stem.rpartition("-")[2]))
        lines = path.read_bytes().split(b"\n")
    except (OSError, ValueError):
        return None
    for line in lines[:-1]:  # the last one is empty or incomplete
        run.take(line)
    return run


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)
