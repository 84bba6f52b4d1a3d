"""Measures contenders in turn: ratios within each round, with their median and spread.

A machine's speed changes from minute to minute, and neighbours take part of it. So contenders take
turns in short laps, every round in another order, and each lap is compared with the same round's
lap of the reference. What is reported is the median of these ratios, with the lowest and highest.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lap:
    """The result of one contender in one round.

    Attributes:
        units: of work: views, samples, rows.
        seconds: of the clock that all contenders use.
    """

    units: float
    seconds: float

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)})"


Contender = Callable[[], Lap]


def timed(work: Callable[[], float], clock: Clock = time.process_time) -> Contender:
    """A contender that runs here.

    Args:
        work: does a lap's work and returns how many units it was.
        clock: CPU time of this process, all threads; ``time.perf_counter`` for wall time.
    """

    def lap() -> Lap:
        start = clock()
        units = work()
        return Lap(units, clock() - start)

    return lap


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Lap]]:
    """Runs every contender once per round, after one round that does not count.

    Returns:
        Per contender its laps, in the order of the rounds.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            lap = contenders[name]()
            if number > 0:
                laps[name].append(lap)
    return laps


def rate(laps: Sequence[Lap]) -> Spread:
    """Units per second."""
    return Spread.of(lap.rate for lap in laps)


def ratio(laps: Sequence[Lap], reference: Sequence[Lap]) -> Spread:
    """How many times as fast as the reference, round by round."""
    pairs = zip(laps, reference, strict=True)
    return Spread.of(lap.rate / other.rate for lap, other in pairs)


def comparison(
    laps: Mapping[str, Sequence[Lap]], reference: str, unit: str, clock: str = "CPU s"
) -> str:
    """The usual table: a row per contender, with its rate and its ratio to the reference."""
    rows = [[name, str(rate(of)), str(ratio(of, laps[reference]))] for name, of in laps.items()]
    return table(["", f"{unit} per {clock}", f"times {reference}"], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up when it is read as plain text."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def machine(*packages: str) -> str:
    """One line that says what was measured on: CPU, cores, Python and versions."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    versions = (f"{name} {version(name)}" for name in packages)
    return ", ".join([model, f"{cores} cores", f"Python {platform.python_version()}", *versions])


def goal(name: str, found: float, wanted: float) -> str:
    """One line: whether a ratio is at least what was wanted."""
    return (
        f"{name}: {_short(found)}, goal {_short(wanted)}: {'met' if found >= wanted else 'MISSED'}"
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of what every program here takes, ``--quick``, for further options."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--quick", action="store_true", help="fewer rounds, under a minute")
    return arguments


def options(description: str | None) -> argparse.Namespace:
    """The options of a program that takes no others."""
    return parser(description).parse_args()


def _short(value: float) -> str:
    """Three figures, and no exponent."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
