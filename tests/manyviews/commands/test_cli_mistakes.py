"""Invalid arguments are refused before torch and the model libraries are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_imports import MODELS

# Runs each command line in a fork of a process that has imported the command line and two light
# libraries; prints the exit code, the output, and the loaded modules of each.
_PROGRAM = """
import json, os, sys, tempfile
import numpy, PIL.Image
from manyviews import main
answers = []
for typed in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as loaded:
        pid = os.fork()
        if pid == 0:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.argv[1:] = typed.split()
            code = 1
            try:
                main.main()
            except SystemExit as ended:
                code = ended.code or 0
            finally:
                names = {part for name in sys.modules for part in (name, name.partition(".")[0])}
                print(*names, file=loaded, flush=True)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        printed.seek(0)
        loaded.seek(0)
        answers.append([code, printed.read(), loaded.read().split()])
print(json.dumps(answers))
"""
Answer = tuple[int, str, set[str]]
UNWANTED = (*MODELS, "matplotlib", "pyarrow", "datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` (one sample), ``empty``, and a TOML file with a wrong value."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "data").mkdir()
    (folder / "empty").mkdir()
    (folder / "data" / "1.jpg").write_bytes(b"no poster")
    (folder / "data" / "1.json").write_text('{"plot": "no plot"}')
    (folder / "wrong.toml").write_text('views = "many"\n')
    return folder


BUILD = "--data-dir data --store features"


MISTAKES = [
    ("build --store features", "The inputs are missing: give --data-dir DIR"),
    ("build --data-dir missing --store features", "missing does not exist"),
    ("build --data-dir empty --store features", "empty"),
    (f"build {BUILD} --views 0", "--views is at least 1"),
    (f"build {BUILD} --features minilm", "minilm"),
    (f"build {BUILD} --batch-size clip_image=x", "--batch-size"),
    (f"build {BUILD} --device gpu", "--device gpu is not a device"),
    (f"build {BUILD} --config missing.toml", "missing.toml"),
    (f"build {BUILD} --config wrong.toml", "views has the wrong type"),
    ("build --data-dir data --store data/1.jpg", "1.jpg"),
    ("check --data-dir missing", "missing does not exist"),
    ("check --data-dir data --features minilm", "minilm"),
    ("views --data-dir missing --stem 1", "missing does not exist"),
    ("views --data-dir data --stem 2", "no sample '2'"),
    ("views --data-dir data --stem 1 --store missing", "no feature store at missing"),
    ("status --store missing", "no feature store at missing"),
    ("materialize --store missing --out-dir out", "no feature store at missing"),
    ("labels --data-dir missing --out-dir out", "missing does not exist"),
    ("export --store missing --format safetensors --out-dir out", "no feature store"),
    ("report --store missing --out page.html", "no feature store at missing"),
    (
        "probe --store missing --labels-dir data --split-json split.json",
        "no feature store at missing",
    ),
    (
        "probe --store missing --labels-dir data --split-json split.json --threshold high",
        "--threshold",
    ),
    ("demo --out-dir data", "data"),
]
VERSION, HEAVY = "--version", f"check {BUILD} --no-calibration --device cpu"


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Answer]:
    """By command line: the exit code and output of a real process, and its loaded modules."""
    typed = [*(arguments for arguments, _ in MISTAKES), VERSION, HEAVY]
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}){_PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(typed),
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        check=True,
    )
    found = json.loads(done.stdout)
    return {
        line: (code, printed, set(modules))
        for line, (code, printed, modules) in zip(typed, found, strict=True)
    }


@pytest.mark.parametrize(("arguments", "part"), MISTAKES)
def test_a_mistake_is_refused_before_heavy_imports(
    answers: dict[str, Answer], arguments: str, part: str
) -> None:
    code, printed, modules = answers[arguments]
    assert code == 2
    assert part in printed
    assert "manyviews" in modules
    assert not modules.intersection(UNWANTED)


def test_the_version_needs_no_library(answers: dict[str, Answer]) -> None:
    code, printed, modules = answers[VERSION]
    assert code == 0
    assert "torch " in printed
    assert "manyviews" in modules
    assert not modules.intersection(UNWANTED)


def test_the_modules_are_looked_at_after_the_command(answers: dict[str, Answer]) -> None:
    _, printed, modules = answers[HEAVY]
    assert "torch" in modules, printed
