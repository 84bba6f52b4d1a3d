"""Read the run logs of a store: the rates of its builds, and how they ended.

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
        host: the name of the machine that it runs on; ``""`` if that was not logged.
    """

    pid: int
    started: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""
    why: str = ""
    host: str = ""
    _chunks: int = 0
    _last: _Mark | None = None
    _written: datetime | None = None

    @property
    def built(self) -> int:
        """Number of samples that it has committed."""
        return 0 if self._last is None else self._last.built

    def take(self, line: bytes) -> None:
        """Reads one line of the log; ignores a line that is torn or unknown."""
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            facts = json.loads(line)
            event = facts["event"]
            self._written = datetime.fromisoformat(facts["time"])
            if event == "started":
                self.started = facts
                self.host = str(facts.get("host", ""))
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
        late = max(0.0, _since(last.time, now) - last.seconds / self._chunks)
        return last.samples_per_s * last.over_s / (last.over_s + late)

    def eta_s(self, left: int, now: datetime) -> float | None:
        """Seconds until ``left`` more samples are committed; None if not known."""
        rate = self.samples_per_s(now)
        if self._last is None or not rate:
            return None
        return max(0.0, left / rate - _since(self._last.time, now))

    def chunk_s(self) -> float:
        """Mean seconds per committed chunk; 0 before the first."""
        return 0.0 if self._last is None else self._last.seconds / self._chunks

    def since_chunk_s(self, now: datetime) -> float:
        """Seconds since the last chunk was committed; 0 before the first."""
        return 0.0 if self._last is None else _since(self._last.time, now)

    def silent_s(self, now: datetime) -> float:
        """Seconds since the last line of the log was written."""
        return 0.0 if self._written is None else _since(self._written, now)

    @property
    def bottleneck(self) -> str:
        """``producers`` if the backbones wait for them most of the time, else ``backbones``."""
        return "unknown" if self._last is None else self._last.slower_side


def _since(time: datetime, now: datetime) -> float:
    # The clocks of two machines may differ: never negative.
    return max(0.0, (now - time).total_seconds())


class RunLogs:
    """The logs in a store's ``records/runs``, each of which is read only after it has grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[int, Run]] = {}

    def read(self) -> list[Run]:
        """Reads all logs, from old to new by their start.

        A log's name is its start time, host and process id. Logs are informative only: unreadable
        logs are left out.
        """
        try:
            paths = sorted(p for p in self._folder.iterdir() if p.suffix == ".log")
        except OSError:
            return []
        runs = []
        for path in paths:
            with suppress(OSError, ValueError):
                runs.append(self._read(path))
        return runs

    def _read(self, path: Path) -> Run:
        size = path.stat().st_size
        known = self._known.get(path)
        if known is None or known[0] != size:
            run = Run(int(path.stem.rpartition("-")[2]))
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last is empty or incomplete
                run.take(line)
            known = self._known[path] = (size, run)
        return known[1]


def newest_run(folder: Path) -> Run | None:
    """Reads the newest log in a store's ``records/runs``; None if there is none."""
    runs = RunLogs(folder).read()
    return runs[-1] if runs else None


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)
