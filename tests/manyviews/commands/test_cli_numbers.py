"""No message says "1 samples" or "12 to 12 words": all commands on a build of one sample."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from manyviews import main

# The number 1 before a plural.
_WRONG = re.compile(
    r"(?<![\d.,])1 (?:bad )?(?:producers|slots|compute threads|samples|views|chunks|files|inputs|"
    r"rows|words|posters|tokens|warnings|errors|pixels)\b(?!/s)|\b(\d+) to \1\b"
)


def test_the_check_itself_can_fail() -> None:
    wrong = ("1 producers", "a: 1 bad inputs", "12 to 12 words", "of 1 chunks")
    assert all(_WRONG.search(line) for line in wrong)
    right = ("11 producers", "1 producer", "1.1 samples/s", "1,001 samples", "12 to 120 words")
    assert not any(_WRONG.search(line) for line in right)


def test_one_of_everything_is_in_the_singular(
    demo_data: Path,
    checkpoints: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    data.mkdir()
    stem = sorted(p.stem for p in (demo_data / "dataset").glob("*.json"))[3]
    for path in (demo_data / "dataset").glob(f"{stem}.*"):
        shutil.copy(path, data)
    build = ["--data-dir", str(data), "--store", str(store), "--features", "clip_text", "--views"]
    build += ["1", "--producers", "1", "--threads", "1", "--device", "cpu"]
    build += ["--model", f"clip_text={checkpoints['clip_text']}"]
    seen = ""
    for command in (
        ["check", *build],
        ["build", *build],
        ["build", *build, "--resume"],
        ["status", "--store", str(store)],
        ["status", "--store", str(store), "--watch"],
        ["verify", "--store", str(store), "--verify-inputs", "--data-dir", str(data)],
        ["views", "--store", str(store), "--data-dir", str(data), "--stem", stem],
        ["export", "--store", str(store), "--format", "npy", "--out-dir", str(tmp_path / "npy")],
        ["labels", "--data-dir", str(data), "--out-dir", str(tmp_path / "labels")],
    ):
        assert main.run_command(command) == 0, command
        seen += "".join(capfd.readouterr())
    assert [line for line in seen.splitlines() if _WRONG.search(line)] == []
    for words in ("1 producer,", "1 compute thread", "1 sample x 1 view", "1 of 1 chunk"):
        assert words in seen, seen
