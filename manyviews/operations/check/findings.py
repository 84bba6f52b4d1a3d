"""What a check finds: facts for programs, and lines for people, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featurestore.errors import ManyViewsError
from featurestore.wording import amount, span

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at.

    Attributes:
        level: ``ok``; ``warning``, a build goes on; ``error``, it would fail or be wrong.
        label: what was looked at, a few words.
        text: what was found.
        advice: what to do about it; ``""`` where there is nothing to do.
        names: everything that is meant, where the text names the first few.
    """

    level: Level
    label: str
    text: str
    advice: str = ""
    names: Sequence[str] = ()


@dataclass(slots=True)
class Group:
    """What belongs together under one title.

    Attributes:
        title: a word.
        facts: plain values for ``--json``.
        lines: for people.
    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def ok(self, label: str, text: str) -> None:
        """Notes something that is as it should be."""
        self.lines.append(Line("ok", label, text))

    def warn(self, label: str, text: str, advice: str) -> None:
        """Notes something that a build goes on with."""
        self.lines.append(Line("warning", label, text, advice))

    def error(self, label: str, text: str, advice: str) -> None:
        """Notes something that has to be mended first."""
        self.lines.append(Line("error", label, text, advice))

    def names(self, level: Level, label: str, names: Sequence[str], advice: str) -> None:
        """Notes some of the data set's files or samples."""
        self.lines.append(Line(level, label, some(names), advice, tuple(names)))

    def failure(self, label: str, error: ManyViewsError | str) -> None:
        """Notes an error of the tree, or its message; its last line says what to do."""
        *what, advice = str(error).split("\n")
        self.error(label, " ".join(w.strip() for w in what) or advice, advice if what else "")


def some(items: Sequence[str], shown: int = 3) -> str:
    """The first few of many names, quoted, with their number."""
    if not items:
        return "none"
    more = f" and {len(items) - shown:,} more" if len(items) > shown else ""
    return f"{len(items):,}: {', '.join(map(repr, items[:shown]))}{more}"


def counted(counts: Mapping[str, int], shown: int = 6) -> str:
    """Words with their counts, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ranked) - shown} more" if len(ranked) > shown else ""
    return ", ".join(f"{name} {count:,}" for name, count in ranked[:shown]) + more


def spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile and largest of some numbers; nothing of none.

    A percentile is the smallest value that has so many of them at or below it.
    """
    ranked = sorted(values)
    if not ranked:
        return {}
    positions = {"min": 0, "median": (len(ranked) - 1) // 2, "max": len(ranked) - 1}
    positions["p95"] = -(-95 * len(ranked) // 100) - 1
    return {name: ranked[positions[name]] for name in ("min", "median", "p95", "max")}


def spread_text(found: Mapping[str, int], unit: str) -> str:
    """A spread in words, of things that ``unit`` names one of."""
    if not found:
        return "none"
    least, most = found["min"], found["max"]
    if least == most:
        return f"{amount(most, unit)} each"
    return f"{span(least, most, unit)}, median {found['median']:,}, 95% up to {found['p95']:,}"


def human_bytes(count: float) -> str:
    """A size in binary units: ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
