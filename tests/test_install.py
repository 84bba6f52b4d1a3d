"""Installing warns of nothing; without a C compiler it works, says so, and makes the same store."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from featurestore.config import BuildConfig
from producers.kernels.implementations import has_compiled
from tests.conftest import ROOT, tree_digest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = sorted({p.partition(".")[0] for p in PROJECT["tool"]["setuptools"]["packages"]})
BUILD: dict[str, Any] = {"views": 4, "chunk": 16, "features": ("clip_image",)}
NOTICE = "no compiled kernels: image views take"


def copy_sources(folder: Path) -> None:
    """Copies what a checkout has of the package."""
    for name in ("pyproject.toml", "setup.py", "README.md", "cli.py"):
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=built)


@pytest.mark.parametrize("what", ["wheel", "sdist", "editable"])
def test_building_warns_of_nothing_and_packs_the_kernels_sources_for_the_sdist_alone(
    tmp_path: Path, what: str
) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    copy_sources(source)
    code = f"import setuptools.build_meta as b, sys; b.build_{what}(sys.argv[1])"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, made],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = (done.stdout + done.stderr).splitlines()
    assert [
        line for line in said if re.search("warning|experimental|deprecat", line, re.IGNORECASE)
    ] == []
    [file] = made.iterdir()
    if what == "sdist":
        with tarfile.open(file) as archive:
            names = archive.getnames()
    else:
        names = zipfile.ZipFile(file).namelist()
    sources = {n for n in names if n.endswith((".c", ".h"))}
    if what == "sdist":
        kernels = {p.name for p in (ROOT / "producers/kernels").glob("*.[ch]")}
        assert {n.rpartition("/")[2] for n in sources} == kernels
    else:
        assert not sources
    if what == "wheel":
        assert "producers/kernels/exp_exceptions.npz" in names
        assert "operations/report/page.html.jinja" in names
        assert "producers/kernels/compiled.pyi" in names


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it where the compiler fails."""
    source, made, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "site"))
    copy_sources(source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    alone = ["--no-deps", "--no-index"]
    wheel = ["wheel", *alone, "--no-build-isolation", "--wheel-dir", str(made), str(source)]
    subprocess.run([*pip, *wheel], check=True, env=os.environ | {"CC": "/bin/false"})
    [file] = made.iterdir()
    names = zipfile.ZipFile(file).namelist()
    assert "producers/kernels/exp_exceptions.npz" in names
    assert not [name for name in names if name.endswith(".so")]
    subprocess.run(
        [*pip, "install", *alone, "--no-compile", "--target", str(site), str(file)], check=True
    )
    return site


def test_modules_of_other_packages_do_not_end_producers(
    without_compiler: Path, demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """In site-packages, which comes after the standard library in every process."""
    place = tmp_path / "site-packages"
    shutil.copytree(without_compiler, place)
    for name in ("enum", "json"):
        (place / f"{name}.py").write_text("raise ImportError('not the standard library')\n")
    code = "import site, sys; site.addsitedir(sys.argv.pop(1)); from cli import main; main()"
    options = ["--data-dir", demo_data / "dataset", "--store", tmp_path / "store", "--views", "2"]
    options += ["--features", "clip_image", "--device", "cpu", "--workers", "1"]
    options += ["--model", f"clip_image={checkpoints['clip_image']}"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, place, "build", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr  # done; the demo data has bad samples
    assert NOTICE in done.stderr  # of the copy without compiled kernels, not of this checkout


def test_an_install_without_a_compiler_makes_the_same_store(
    without_compiler: Path, demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    if not has_compiled():
        pytest.skip("no compiler built the kernels that the others are compared with")
    build(
        BuildConfig(
            data_dir=demo_data / "dataset",
            store=tmp_path / "compiled",
            models=checkpoints,
            device="cpu",
            workers=2,
            **BUILD,
        )
    )
    options = ["--data-dir", demo_data / "dataset", "--store", tmp_path / "libraries"]
    for name in ("views", "chunk"):
        options += [f"--{name}", str(BUILD[name])]
    options += ["--features", ",".join(BUILD["features"]), "--device", "cpu", "--workers", "2"]
    for name in BUILD["features"]:
        options += ["--model", f"{name}={checkpoints[name]}"]
    done = subprocess.run(
        [sys.executable, "-c", "from cli import main; main()", "build", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(without_compiler)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr  # done; the demo data has bad samples
    assert done.stderr.count(NOTICE) == 1
    assert tree_digest(tmp_path / "libraries") == tree_digest(tmp_path / "compiled")
