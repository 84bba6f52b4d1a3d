"""Findings of a check: facts for programs, and lines of text with advice for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featurestore.errors import ManyViewsError
from featurestore.wording import amount, span

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """One finding.

    Attributes:
        level: ``ok``; ``warning``, a build continues; ``error``, it would fail or be wrong.
        label: the subject of the finding, a few words.
        text: the finding.
        advice: what to do about it; ``""`` if there is nothing to do.
        names: all names that the finding is about; the text lists the first few.
    """

    level: Level
    label: str
    text: str
    advice: str = ""
    names: Sequence[str] = ()


@dataclass(slots=True)
class Group:
    """The findings about one subject.

    Attributes:
        title: the heading, one word.
        facts: plain values for ``--json``.
        lines: the findings as text.
    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def ok(self, label: str, text: str) -> None:
        """Adds a finding that is as it should be."""
        self.lines.append(Line("ok", label, text))

    def warn(self, label: str, text: str, advice: str) -> None:
        """Adds a finding that does not stop a build."""
        self.lines.append(Line("warning", label, text, advice))

    def error(self, label: str, text: str, advice: str) -> None:
        """Adds a finding that must be corrected before a build."""
        self.lines.append(Line("error", label, text, advice))

    def names(self, level: Level, label: str, names: Sequence[str], advice: str) -> None:
        """Adds a finding about some of the data set's files or samples."""
        self.lines.append(Line(level, label, some(names), advice, tuple(names)))

    def failure(self, label: str, error: ManyViewsError | str) -> None:
        """Adds an error by its message, whose last line says what to do."""
        *what, advice = str(error).split("\n")
        self.error(label, " ".join(w.strip() for w in what) or advice, advice if what else "")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of a check.

    Attributes:
        groups: the groups of findings, in the order in which they are printed.
    """

    groups: tuple[Group, ...]

    def lines(self, level: str) -> list[tuple[str, Line]]:
        """The lines of one level, each with the title of its group."""
        return [(g.title, line) for g in self.groups for line in g.lines if line.level == level]

    def facts(self) -> dict[str, Any]:
        """The whole report as plain values for ``--json``."""
        problems = [
            {"level": level, "group": title, "what": f"{x.label}: {x.text}", "advice": x.advice}
            for level in ("error", "warning")
            for title, x in self.lines(level)
        ]
        return {
            "ok": not self.lines("error"),
            "problems": problems,
            **{group.title: group.facts for group in self.groups},
        }


def some(items: Sequence[str], shown: int = 3) -> str:
    """The number of names and the first few of them, quoted."""
    return f"{len(items):,}: {listed(list(map(repr, items)), shown)}" if items else "none"


def listed(items: Sequence[str], shown: int = 3) -> str:
    """The first few of many texts, and how many more there are."""
    more = f" and {len(items) - shown:,} more" if len(items) > shown else ""
    return f"{', '.join(items[:shown])}{more}"


def counted(counts: Mapping[str, int], shown: int = 6) -> str:
    """Names with their counts, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ranked) - shown} more" if len(ranked) > shown else ""
    return ", ".join(f"{name} {count:,}" for name, count in ranked[:shown]) + more


def spread(values: Sequence[int]) -> dict[str, int]:
    """Minimum, median, 95th percentile and maximum of some numbers; empty if there are none.

    A percentile is the smallest value with at least that share of the values at or below it.
    """
    ranked = sorted(values)
    if not ranked:
        return {}
    positions = {"min": 0, "median": (len(ranked) - 1) // 2, "max": len(ranked) - 1}
    positions["p95"] = -(-95 * len(ranked) // 100) - 1
    return {name: ranked[positions[name]] for name in ("min", "median", "p95", "max")}


def spread_text(numbers: Mapping[str, int], unit: str) -> str:
    """A spread as text; ``unit`` is the singular noun of what was counted."""
    if not numbers:
        return "none"
    least, most = numbers["min"], numbers["max"]
    if least == most:
        return f"{amount(most, unit)} each"
    return f"{span(least, most, unit)}, median {numbers['median']:,}, 95% up to {numbers['p95']:,}"
