"""The demo's steps: their messages as they come, and an end to a step that hangs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from featurestore.errors import ManyViewsError
from manyviews.operations.demo import demo


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's only argument is a program for Python."""
    monkeypatch.setattr(demo, "_command", lambda program: [sys.executable, "-c", program])


@pytest.mark.usefixtures("typed")
def test_messages_are_passed_on_while_a_step_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = (
        "import pathlib, sys, time\n"
        "print('started', file=sys.stderr, flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "print('result')\n"
    )
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        go.touch()  # the step would wait for ever if its line came at its end

    assert demo._cli(say, program) == "result\n"
    assert said == ["   started"]


@pytest.mark.usefixtures("typed")
def test_a_step_that_prints_nothing_is_ended_and_its_limit_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "SILENT_S", 0.5)
    start = time.monotonic()
    with pytest.raises(ManyViewsError, match=r"printed nothing for 0\.5 s, the limit"):
        demo._cli(lambda _line: None, "import time; time.sleep(600)")
    assert time.monotonic() - start < 120


@pytest.mark.usefixtures("typed")
def test_a_step_that_fails_is_named_with_its_status() -> None:
    with pytest.raises(ManyViewsError, match="ended with exit status 7"):
        demo._cli(lambda _line: None, "raise SystemExit(7)")


@pytest.mark.usefixtures("typed")
def test_a_build_that_ends_without_a_chunk_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManyViewsError, match="before it committed a chunk"):
        demo._build_and_kill(["pass"], tmp_path, lambda _line: None)
