"""Rates and ends read from a log, compared with numbers computed by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from manyviews.operations.watch.runs import Run, newest_run

START = datetime(2026, 1, 1, tzinfo=UTC)


def line(event: str, at_s: float, **facts: Any) -> bytes:
    time = (START + timedelta(seconds=at_s)).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "event": event, **facts}).encode()


def run_of(*chunks: tuple[float, int, float]) -> Run:
    """A run with chunks committed at (seconds, samples until then, seconds waited).

    Each logged chunk has the rate of the last minute: here 2.5 samples/s, over 8 s.
    """
    run = Run(1)
    run.take(line("started", 0, samples=100))
    for seconds, built, waited in chunks:
        facts: dict[str, Any] = {"built": built, "seconds": seconds, "waited_s": waited}
        facts |= {"samples_per_s": 2.5, "over_s": 8.0, "slower_side": "backbones"}
        run.take(line("chunk", seconds, **facts))
    return run


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_nothing_is_known_before_the_first_chunk() -> None:
    run = run_of()
    assert (run.samples_per_s(), run.eta_s(100, at(5)), run.bottleneck) == (0.0, None, "unknown")


def test_an_ended_build_has_the_rate_that_its_last_line_says() -> None:
    run = run_of((20, 10, 15), (24, 20, 15.5), (28, 30, 16))
    assert run.samples_per_s() == pytest.approx(30 / 28)


def test_a_running_build_has_the_rate_that_it_displays() -> None:
    run = run_of((20, 10, 15), (24, 20, 15.5), (28, 30, 16))
    assert run.samples_per_s(at(28)) == pytest.approx(2.5)
    assert run.eta_s(50, at(28)) == pytest.approx(20)
    assert run.eta_s(50, at(33)) == pytest.approx(15)
    assert run.bottleneck == "backbones"


def test_without_a_logged_rate_the_rate_counts_from_the_start() -> None:
    run = Run(1)
    facts = {"samples_per_s": 0.0, "over_s": 0.0, "slower_side": "unknown"}
    run.take(line("chunk", 20, built=1, seconds=20.0, **facts))
    assert run.samples_per_s(at(20)) == pytest.approx(1 / 20)


def test_the_rate_of_a_stalled_build_falls() -> None:
    run = run_of((4, 10, 0), (8, 20, 0), (12, 30, 0))
    assert run.samples_per_s(at(16)) == pytest.approx(20 / 8)
    # The next chunk, expected 4 s after the last one, is 100 s late.
    assert run.samples_per_s(at(116)) == pytest.approx(20 / 108)
    assert run.samples_per_s(at(0)) == pytest.approx(20 / 8)  # another machine's clock


@pytest.mark.parametrize("end", ["finished", "interrupted", "failed"])
def test_the_end_of_a_run_is_read(end: str) -> None:
    run = run_of((20, 10, 0))
    run.take(line(end, 21, error="No space"))
    assert (run.end, run.why) == (end, "No space")


def test_unknown_and_torn_lines_are_ignored(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "none") is None
    assert newest_run(tmp_path) is None
    rate = {"samples_per_s": 0.5, "over_s": 6.0, "slower_side": "producers"}
    whole = line("chunk", 9, built=3, seconds=9.0, waited_s=1.0, **rate)
    (tmp_path / "20260101T000000.000000Z-7.log").write_bytes(line("failed", 1, error="old") + b"\n")
    (tmp_path / "20260102T000000.000000Z-8.log").write_bytes(
        b"\xff\n[1]\n3\n{}\n" + whole + b"\n" + whole[:-9]
    )
    (tmp_path / "inputs.jsonl").write_bytes(b"")
    run = newest_run(tmp_path)
    assert run is not None
    assert (run.pid, run.built, run.end) == (8, 3, "")
