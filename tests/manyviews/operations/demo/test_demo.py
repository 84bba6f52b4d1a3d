"""The demo's steps: their messages, their order, and steps that fail or hang."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from featurestore.errors import ManyViewsError
from featurestore.storage.ledger import Ledger
from manyviews.operations.demo import demo


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the argument of a step a Python program."""
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
        go.touch()  # otherwise the step waits for ever

    assert demo._cli(say, program) == "result\n"
    assert said == ["   started"]


@pytest.mark.usefixtures("typed")
def test_a_silent_step_is_killed_and_the_limit_named(
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


@pytest.mark.usefixtures("typed")
def test_the_chunks_that_a_killed_build_committed_are_counted(tmp_path: Path) -> None:
    """Progress lines count samples that are not committed yet; the kill loses those."""
    ledger = tmp_path / Ledger.FILE
    ledger.parent.mkdir(parents=True)
    program = f"import pathlib, time; pathlib.Path({str(ledger)!r}).write_text('x\\n')"
    said: list[str] = []
    assert demo._build_and_kill([f"{program}; time.sleep(600)"], tmp_path, said.append) == 1
    assert said == [
        "   killed: 1 of 3 chunks (16 samples) was committed; the rest is computed again"
    ]


def test_the_probe_table_follows_its_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if the output goes to a file, the table is before the summary."""
    for name in ("make_demo_data", "_make_checkpoints", "_build_arguments", "_materialize"):
        monkeypatch.setattr(demo, name, lambda *_: [])
    monkeypatch.setattr(demo, "_build_and_kill", lambda *_: 1)
    monkeypatch.setattr(demo, "_cli", lambda *_, **__: "{}")
    monkeypatch.setattr(demo, "_probe", lambda *_: ["the table"])
    monkeypatch.setattr(demo, "_summary", lambda *_: said.append("Done"))
    said: list[str] = []
    demo.run(tmp_path / "demo", say=said.append)
    assert [line.strip() for line in said[-3:]] == [
        "6. a linear probe of every feature, from the store",
        "the table",
        "Done",
    ]
