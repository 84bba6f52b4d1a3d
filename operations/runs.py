"""What the newest log of a store's builds says: how fast it is, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Rates are taken over so many seconds, but over two chunks at least, as a build's display does.
_WINDOW_S = 60.0
_WINDOW_CHUNKS = 2
_ENDS = ("finished", "interrupted", "failed")


@dataclass(frozen=True, slots=True)
class _Mark:
    """One committed chunk: when, and the run's totals until then."""

    time: datetime
    built: int
    seconds: float
    waited_s: float


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
    _marks: list[_Mark] = field(default_factory=list)

    @property
    def built(self) -> int:
        """Samples that it has committed."""
        return self._marks[-1].built if self._marks else 0

    def take(self, line: bytes) -> None:
        """Takes one line of the log; one that is torn or foreign says nothing."""
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            facts = json.loads(line)
            event = facts["event"]
            if event == "started":
                self.started = facts
            elif event == "chunk":
                time = datetime.fromisoformat(facts["time"])
                values = (int(facts["built"]), float(facts["seconds"]), float(facts["waited_s"]))
                self._marks.append(_Mark(time, *values))
            elif event in _ENDS:
                self.end, self.why = event, str(facts.get("error", ""))

    def samples_per_s(self, now: datetime | None = None) -> float:
        """Samples per second at the end of the log; 0 where nothing is known.

        Args:
            now: of a build that runs: while nothing comes, the rate falls.
        """
        first, last, chunks = self._window()
        if last is None:
            return 0.0
        elapsed, built = last.seconds, last.built
        if first is not None:
            elapsed, built = elapsed - first.seconds, built - first.built
        if now is not None:
            elapsed += max(0.0, _since(last, now) - elapsed / chunks)
        return built / elapsed if elapsed > 0 else 0.0

    def eta_s(self, left: int, now: datetime) -> float | None:
        """Seconds until ``left`` more samples are committed; None where nothing is known."""
        rate = self.samples_per_s(now)
        if not rate:
            return None
        return max(0.0, left / rate - _since(self._marks[-1], now))

    @property
    def bottleneck(self) -> str:
        """``producers`` where the backbones wait for them most of the time, else ``backbones``."""
        first, last, _ = self._window()
        if last is None:
            return "unknown"
        waited, elapsed = last.waited_s, last.seconds
        if first is not None:
            waited, elapsed = waited - first.waited_s, elapsed - first.seconds
        return "producers" if waited > 0.5 * elapsed else "backbones"

    def _window(self) -> tuple[_Mark | None, _Mark | None, int]:
        """The marks between which rates are taken, and the chunks between them.

        The first is None where the run's start takes its place.
        """
        marks = self._marks
        if not marks:
            return None, None, 0
        before = [m for m in marks[:-_WINDOW_CHUNKS] if marks[-1].seconds - m.seconds >= _WINDOW_S]
        if before:
            return before[-1], marks[-1], len(marks) - len(before)
        # Without the first chunk, which includes the producers' start, where there are others.
        if len(marks) > _WINDOW_CHUNKS:
            return marks[0], marks[-1], len(marks) - 1
        return None, marks[-1], len(marks)


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
