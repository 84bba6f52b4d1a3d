"""Installation without warnings; without a C compiler it reports that and builds the same store.

One wheel with the kernels, one without them and one sdist are built for all tests. The clean
environments use the libraries of this one, so that torch is not installed again, and commands that
need torch run in forks of a process that has imported the libraries, and nothing of this project.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from producers.kernels.implementations import has_compiled
from tests import warm
from tests.conftest import NIGHTLY, ROOT, tree_digest

BUILD: dict[str, Any] = {"views": 4, "chunk": 8, "features": ("clip_image",)}
NOTICE = "no compiled kernels: image views take"
PACKAGES = ("consumers", "featurestore", "manyviews", "producers")
NO_COMPILER = {"CC": "/bin/false"}
# A compiler that optimizes nothing.
QUICK_COMPILER = '#!/bin/bash\nexec cc "${@/#-O*/-O0}"\n'
# The files of the package in a checkout, beside the packages themselves.
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "cli.py")

needs_compiler = pytest.mark.skipif(not has_compiled(), reason="no compiler built the kernels")


def copy_sources(folder: Path) -> Path:
    """Copies the package's files from the checkout."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    return folder


def build_by_setuptools(what: str, folder: Path, **variables: str) -> tuple[Path, str]:
    """Builds a copy of the sources; returns the file and the printed output."""
    source, made = copy_sources(folder / "source"), folder / "made"
    code = f"import setuptools.build_meta as b, sys; b.build_{what}(sys.argv[1])"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, made],
        cwd=source,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    [file] = made.iterdir()
    return file, done.stdout + done.stderr


def warnings_in(printed: str) -> list[str]:
    pattern = re.compile("warning|experimental|deprecat", re.IGNORECASE)
    return [line for line in printed.splitlines() if pattern.search(line)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheel with the kernels, as published, and the printed output of its build."""
    folder = tmp_path_factory.mktemp("wheel")
    return build_by_setuptools("wheel", folder, MANYVIEWS_REQUIRE_KERNELS="1")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return build_by_setuptools("sdist", tmp_path_factory.mktemp("sdist"))


@needs_compiler
def test_a_wheel_holds_the_kernels_for_every_python_and_no_sources(
    wheel: tuple[Path, str],
) -> None:
    file, printed = wheel
    assert warnings_in(printed) == []
    names = zipfile.ZipFile(file).namelist()
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "manyviews/operations/report/page.html.jinja" in names
    assert "producers/kernels/compiled.pyi" in names
    assert "producers/kernels/compiled.abi3.so" in names
    assert "-cp311-abi3-" in file.name
    assert {f"{name}/py.typed" for name in PACKAGES} <= set(names)
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_four_names_are_installed(wheel: tuple[Path, str]) -> None:
    names = zipfile.ZipFile(wheel[0]).namelist()
    top = {name.partition("/")[0].removesuffix(".py") for name in names}
    assert {name for name in top if ".dist-info" not in name} == set(PACKAGES)


def test_an_sdist_holds_the_sources_of_the_kernels(sdist: tuple[Path, str]) -> None:
    file, printed = sdist
    assert warnings_in(printed) == []
    with tarfile.open(file) as archive:
        names = archive.getnames()
    kernels = {p.name for p in (ROOT / "producers/kernels").glob("*.[ch]")}
    assert {n.rpartition("/")[2] for n in names if n.endswith((".c", ".h"))} == kernels
    assert not [name for name in names if name.endswith(".so")]


@needs_compiler
def test_an_editable_install_prints_no_warning(tmp_path: Path) -> None:
    compiler = tmp_path / "quick"
    compiler.write_text(QUICK_COMPILER)
    compiler.chmod(0o755)
    _, printed = build_by_setuptools("editable", tmp_path, CC=str(compiler))
    assert warnings_in(printed) == []
    assert list((tmp_path / "source/producers/kernels").glob("compiled*.so"))


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"MANYVIEWS_REQUIRE_KERNELS": "1"} | NO_COMPILER, "/bin/false"),
        ({"MANYVIEWS_REQUIRE_KERNELS": "yes"}, "MANYVIEWS_REQUIRE_KERNELS is 0 or 1, found 'yes'"),
    ],
)
def test_required_kernels_are_built_or_the_build_fails(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build_by_setuptools("wheel", tmp_path, **variables)
    assert reason in caught.value.stdout + caught.value.stderr
    assert not list((tmp_path / "made").glob("*.whl"))


def environment_of(folder: Path, *what: object) -> Path:
    """The Python of a clean environment in which pip installed ``what``, its arguments.

    It finds the libraries of this environment, except those of editable installs.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin/python"
    [site] = folder.glob("lib/python*/site-packages")
    libraries = Path(pytest.__file__).parent.parent
    (site / "libraries.pth").write_text(f"{libraries}\n")
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install"]
    alone = [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--no-compile",
        "--ignore-installed",
    ]
    subprocess.run([*install, *alone, *map(str, what)], check=True, env=os.environ | NO_COMPILER)
    return python


@pytest.fixture(scope="module")
def from_wheel(wheel: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment_of(tmp_path_factory.mktemp("from-wheel") / "venv", wheel[0])


@pytest.fixture(scope="module")
def from_sdist(sdist: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment built without a compiler, which uses the kernels of libraries."""
    return environment_of(tmp_path_factory.mktemp("from-sdist") / "venv", sdist[0])


def site_packages(python: Path) -> Path:
    [site] = python.parent.parent.glob("lib/python*/site-packages")
    return site


def manyviews(python: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the installed command from a folder that is not the checkout."""
    return subprocess.run(
        [python, python.parent / "manyviews", *map(str, arguments)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_compiler
def test_the_version_says_which_kernels_there_are(
    from_wheel: Path, from_sdist: Path, tmp_path: Path
) -> None:
    assert "kernels compiled" in manyviews(from_wheel, tmp_path, "--version").stdout
    assert "kernels of libraries" in manyviews(from_sdist, tmp_path, "--version").stdout
    assert not list(site_packages(from_sdist).glob("producers/kernels/*.so"))


class WithLibraries(warm.Popen):
    """Forks of a process that has imported the libraries that take seconds."""

    imported = ("torch", "transformers", "sentence_transformers", "rich.progress", "zarr")


# Makes a fork the process of an environment's interpreter, without this checkout's packages.
ENTER = """
import json, os, runpy, sys
interpreter, places, packages, command = map(json.loads, sys.argv[1:5])
del os.environ["PYTHONPATH"], sys.argv[1:5]
for name in list(sys.modules):
    if name.partition(".")[0] in packages:
        del sys.modules[name]
sys.meta_path[:] = [each for each in sys.meta_path if "__editable__" not in each.__module__]
sys.executable, sys.path[:] = interpreter, places
sys.argv[0] = command
runpy.run_path(command, run_name="__main__")
"""


def run_forked(
    python: Path, command: Path, folder: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Runs a script as the interpreter would that is in ``python``; its children are started."""
    ask = [str(python), "-c", "import json, sys; print(json.dumps(sys.path[1:]))"]
    places = json.loads(subprocess.run(ask, capture_output=True, check=True, cwd=folder).stdout)
    given = [str(python), [str(command.parent), *places], PACKAGES, str(command)]
    typed = [*map(json.dumps, given), *map(str, arguments)]
    with WithLibraries(
        [sys.executable, "-c", ENTER, *typed],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(typed, process.returncode, output, errors)


# The demo of the installed package, with fewer views. Builds and the probe, which need torch, are
# forked; the other steps are started as always.
FEW_VIEWS = """
import inspect, os, subprocess, sys, types
from manyviews import main
from manyviews.operations.demo import demo

PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
START = inspect.signature(subprocess.Popen._execute_child)

class Step(subprocess.Popen):
    def _execute_child(self, command, *passed):
        arguments = command[5:]  # after the interpreter, -P, -c, the code and its argument
        if arguments[0] not in ("build", "probe"):
            return super()._execute_child(command, *passed)
        given = START.bind(self, command, *passed).arguments
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(given["c2pwrite"], 1)
                os.dup2(given["errwrite"], 2)
                os.closerange(3, 4096)
                sys.argv[1:] = arguments
                main.main()
            except SystemExit as end:
                sys.stdout.flush()
                code = end.code
            finally:
                os._exit(code)
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))

demo._VIEWS = 4
demo.subprocess = types.SimpleNamespace(Popen=Step, PIPE=subprocess.PIPE)
main.main()
"""


def test_the_demo_runs_from_another_folder(from_wheel: Path, tmp_path: Path) -> None:
    """With an enum.py in site-packages, which comes after the standard library."""
    site = site_packages(from_wheel)
    intruder = site / "enum.py"
    intruder.write_text("raise ImportError('not the standard library')\n")
    few_views = from_wheel.parent / "few-views"
    few_views.write_text(FEW_VIEWS)
    typed = ("demo", "--out-dir", "demo")
    try:
        if NIGHTLY:
            done = manyviews(from_wheel, tmp_path, *typed)
        else:
            done = run_forked(from_wheel, few_views, tmp_path, *typed)
    finally:
        intruder.unlink()
    assert done.returncode == 0, done.stderr
    assert NOTICE not in done.stderr + done.stdout
    assert (tmp_path / "demo").is_dir()


def test_an_editable_install_works_beside_its_clone(tmp_path: Path) -> None:
    """A folder ``manyviews`` in the current or the script's folder is not a namespace package."""
    clone = copy_sources(tmp_path / "manyviews")
    python = environment_of(tmp_path / "venv", "--editable", clone)
    script = tmp_path / "train.py"
    script.write_text("import manyviews; print(manyviews.BuildConfig, manyviews.__file__)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for arguments, folder in (
        (["-c", script.read_text()], tmp_path),
        ([str(script)], elsewhere),
        (["-c", script.read_text()], elsewhere),
    ):
        done = subprocess.run(
            [python, *arguments],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == str(clone / "manyviews/__init__.py")


INTRUDERS = ("consumers/__init__.py", "producers.py", "featurestore/other.py")


@pytest.mark.parametrize("intruder", INTRUDERS)
def test_another_package_of_a_siblings_name_is_named(
    from_wheel: Path, tmp_path: Path, intruder: str
) -> None:
    """First on the path; a folder without ``__init__`` does not shadow a later package."""
    path = tmp_path / "others" / intruder
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("raise RuntimeError('imported')\n")
    done = subprocess.run(
        [from_wheel, "-c", "import manyviews"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "others")},
        capture_output=True,
        text=True,
        check=False,
    )
    if intruder == "featurestore/other.py":
        assert done.returncode == 0, done.stderr
        return
    expected = path.parent if path.name == "__init__.py" else path
    assert done.returncode == 1
    message = done.stderr.partition("ImportError: ")[2].splitlines()
    assert len(message) <= 4
    assert str(expected) in message
    assert "PYTHONPATH" in message[-1]
    assert "RuntimeError" not in done.stderr


def test_a_sibling_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "manyviews", tmp_path / "manyviews")
    code = "import sys; sys.path[:] = [sys.argv[1], *sys.path[1:]]; import manyviews"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "its package 'featurestore' is missing" in done.stderr


@needs_compiler
def test_an_install_without_a_compiler_builds_the_same_store(
    from_sdist: Path, demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """Beside modules in site-packages, which comes after the standard library in every process."""
    data = tmp_path / "data"
    data.mkdir()
    for text in sorted((demo_data / "dataset").glob("*.json"))[:9]:
        for file in text.parent.glob(f"{text.stem}.*"):
            shutil.copy(file, data)
    build(
        BuildConfig(
            data_dir=data,
            store=tmp_path / "compiled",
            models=checkpoints,
            device="cpu",
            producers=2,
            **BUILD,
        )
    )
    options = ["--data-dir", data, "--store", tmp_path / "libraries"]
    for name in ("views", "chunk"):
        options += [f"--{name}", str(BUILD[name])]
    options += ["--features", ",".join(BUILD["features"]), "--device", "cpu", "--producers", "2"]
    for name in BUILD["features"]:
        options += ["--model", f"{name}={checkpoints[name]}"]
    intruders = [site_packages(from_sdist) / f"{name}.py" for name in ("enum", "json")]
    for path in intruders:
        path.write_text("raise ImportError('not the standard library')\n")
    try:
        command = from_sdist.parent / "manyviews"
        done = run_forked(from_sdist, command, tmp_path, "build", *options)
    finally:
        for path in intruders:
            path.unlink()
    assert done.returncode == 3, done.stderr  # done; the demo data has bad samples
    # Of the copy without compiled kernels, not of this checkout; once, not once a producer.
    assert done.stderr.count(NOTICE) == 1
    assert tree_digest(tmp_path / "libraries") == tree_digest(tmp_path / "compiled")
