"""The C kernels under the address and undefined behaviour sanitizers, with hostile arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import NIGHTLY, ROOT

SECONDS = 300 if NIGHTLY else 2
# Other arguments in each nightly run, and the same arguments in all other runs.
SEED = int.from_bytes(os.urandom(4), "big") if NIGHTLY else 7
KERNELS = ROOT / "producers" / "kernels"
CHECKED = "address,undefined,float-cast-overflow,float-divide-by-zero"
# One version of each function: the loader would choose between several before the sanitizer runs.
FLAGS = [
    *("-std=c11", "-O1", "-g", "-fPIC", "-ffp-contract=off", "-DMANYVIEWS_ONE_VERSION"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", f"-fsanitize={CHECKED}"),
    *("-fno-sanitize-recover=all", f"-I{KERNELS}", f"-I{sysconfig.get_path('include')}"),
]


def build(sources: list[Path], others: list[Path], built: Path) -> None:
    """Compiles the sources beside ``built`` and links them with other objects."""
    objects = [built.with_name(f"{source.stem}.o") for source in sources]
    for source, made in zip(sources, objects, strict=True):
        subprocess.run(["gcc", *FLAGS, "-c", source, "-o", made], check=True)
    link: list[str | Path]
    link = ["gcc", "-shared", f"-fsanitize={CHECKED}", *objects, *others, "-lm", "-o", built]
    subprocess.run(link, check=True)


@pytest.fixture(scope="module")
def runtime() -> str:
    """The address sanitizer's library, which must be loaded before Python."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    found = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
    if not Path(found).is_absolute():
        pytest.skip("gcc has no address sanitizer here (libasan.so)")
    return found


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> Path:
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    built = tmp_path_factory.mktemp("sanitized") / "compiled.so"
    build(sorted(KERNELS.glob("*.c")), [], built)
    return built


def fuzz(built: Path, runtime: str, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    settings = {
        "LD_PRELOAD": runtime,
        # Arrays of few bytes too are to have guarded memory around them.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=64",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.producers.kernels.fuzz_kernels",
            built,
            str(seconds),
            str(seed),
        ],
        env=os.environ | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fuzz_finds_nothing(sanitized: Path, runtime: str) -> None:
    done = fuzz(sanitized, runtime, SECONDS, seed=SEED)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr[-8000:]}"
    counts = dict(pair.split("=") for pair in done.stdout.split())
    assert set(counts) >= {"resize", "blur", "hue", "contrast", "refused"}
    print(done.stdout)


def test_the_sanitizers_see_a_mistake(tmp_path: Path, runtime: str, sanitized: Path) -> None:
    """The same kernels, except that one copies one pixel too many."""
    layout = tmp_path / "layout.c"
    sound = (KERNELS / "layout.c").read_text("ascii")
    layout.write_text(sound.replace("i < n", "i <= n"), "ascii")
    assert layout.read_text("ascii") != sound
    others = [path for path in sanitized.parent.glob("*.o") if path.stem != "layout"]
    build([layout], others, tmp_path / "compiled.so")
    done = fuzz(tmp_path / "compiled.so", runtime, SECONDS, seed=1)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
