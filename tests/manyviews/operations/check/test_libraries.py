"""Whether torchvision fits torch, compared with importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manyviews.operations.check import libraries
from manyviews.operations.check.findings import Group


def test_the_result_is_that_of_importing_torchvision() -> None:
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    assert libraries.torchvision_fits() is (done.returncode == 0)


@pytest.mark.parametrize(
    ("needed", "present", "fits"),
    [("torch", "torch", True), ("torch", "", False), ("c10", "torch", False), ("", "", True)],
)
def test_a_torchvision_for_cuda_needs_torchs_cuda_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: str, present: str, fits: bool
) -> None:
    monkeypatch.setattr(libraries, "_folder", lambda package: tmp_path / package)
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torchvision").mkdir()
    names = f"\0libc10.so\0lib{needed}_cuda.so\0" if needed else "\0libc10.so\0"
    (tmp_path / "torchvision" / "_C.so").write_bytes(names.encode())
    if present:
        (tmp_path / "torch" / "lib" / f"lib{present}_cuda.so").touch()
    assert libraries.torchvision_fits() is fits
    group = Group("machine")
    libraries.torchvision_into(group)
    assert [line.level for line in group.lines] == ([] if fits else ["warning"])


def test_without_torchvision_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_folder", lambda _: None)
    assert libraries.torchvision_fits()
