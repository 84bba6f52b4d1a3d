"""The displays of several workers: a line for each, and one for all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from consumers.workers.display import LiveDevices, PlainDevices

STARTED = {"samples": 48, "views": 4, "done": 8, "chunk": 4, "features": {"own": 32}}
STARTED |= {"slots": 4, "producers": 2, "threads": 1, "notices": ["a notice"]}
LABELS = ["cuda:0 (worker 0/2)", "cuda:1 (worker 1/2)"]


def play(show: Callable[[str, dict[str, Any]], None], clock: list[float]) -> None:
    """Two workers, of which one builds eight samples a second and the other one is refused."""

    def worker(place: int, what: str, **facts: Any) -> None:
        show("worker", {"place": place, "label": LABELS[place], "what": what, "facts": facts})

    show("workers", {"labels": LABELS})
    worker(0, "loading", device="cuda:0")
    worker(1, "ended", error="another seed\nsecond line")
    show("started", STARTED)
    worker(0, "started", **STARTED)
    for _ in range(9):
        worker(0, "sample", count=4, filled=3, waited_s=0.0)
        clock[0] += 0.5
    show("committed", {"samples": 48, "done": 16})
    worker(0, "chunk", chunk=2, bad=[[9, "image", "truncated", "cut"]])
    clock[0] += 20
    worker(0, "sample", count=1, filled=3, waited_s=0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_plain_lines(clock: list[float]) -> None:
    stream = io.StringIO()
    play(PlainDevices(stream), clock)
    lines = stream.getvalue().splitlines()
    assert f"{LABELS[0]}: loading the backbones" in lines
    assert f"{LABELS[1]} ended: another seed" in lines
    assert f"{LABELS[0]}: a notice" in lines
    total, first, second = lines[-3:]
    assert re.fullmatch(r"16/48 samples, [\d.]+ samples/s, \d+ views/s, \d:\d\d:\d\d left", total)
    assert re.fullmatch(
        re.escape(LABELS[0]) + r": [\d.]+ samples/s, 1 chunk, queue 3/4, slower side: backbones",
        first,
    )
    assert second == f"{LABELS[1]}: ended: another seed"


def test_verbose_lines_have_each_chunk_and_each_bad_input(clock: list[float]) -> None:
    stream = io.StringIO()
    play(PlainDevices(stream, interval_s=0.0), clock)
    assert f"{LABELS[0]}: chunk 2; 16/48 samples" in stream.getvalue()
    assert "sample 9: image truncated (cut)" in stream.getvalue()


def test_live_lines_fit_the_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    show = LiveDevices(Console(file=stream, force_terminal=True, width=80, color_system=None))
    play(show, clock)
    show("finished", {})
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in stream.getvalue().split("\n")]
    assert any(line.startswith("16/48 samples, ") for line in shown)
    assert any(line.startswith(f"{LABELS[1]}: ended: another seed") for line in shown)
    assert all(len(line.rstrip("\r").split("\r")[-1]) <= 80 for line in shown)
