"""Invalid arguments are refused before torch and the model libraries are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_imports import MODELS

# Runs the command line, and prints the loaded modules in the last line.
_PROGRAM = """
import sys
from manyviews import main
try:
    main.main()
finally:
    print()
    print(*{part for name in sys.modules for part in (name, name.partition(".")[0])})
"""
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


def answer(folder: Path, arguments: str) -> tuple[int, str, set[str]]:
    """The exit code and output of a real process, and the modules that it had loaded."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}){_PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    printed, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    return done.returncode, printed + done.stderr, set(modules.split())


BUILD = "--data-dir data --store features"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
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
    ],
)
def test_a_mistake_is_refused_before_heavy_imports(folder: Path, arguments: str, part: str) -> None:
    code, printed, modules = answer(folder, arguments)
    assert code == 2
    assert part in printed
    assert "manyviews" in modules
    assert not modules.intersection(UNWANTED)


def test_the_version_needs_no_library(folder: Path) -> None:
    code, printed, modules = answer(folder, "--version")
    assert code == 0
    assert "torch " in printed
    assert "manyviews" in modules
    assert not modules.intersection(UNWANTED)


def test_the_modules_are_looked_at_after_the_command(folder: Path) -> None:
    _, printed, modules = answer(folder, f"check {BUILD} --no-calibration --device cpu")
    assert "torch" in modules, printed
