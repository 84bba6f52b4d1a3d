"""The command that installs an extra, in a checkout and in an installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyviews.operations import installing
from tests.conftest import ROOT


def test_a_checkout_installs_its_own_extra() -> None:
    assert installing.extra("report") == f'cd "{ROOT}" && pip install -e ".[report]"'


def test_an_installation_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manyviews" / "operations" / "installing.py"
    monkeypatch.setattr(installing, "__file__", str(path))
    assert installing.extra("report") == 'pip install "manyviews[report]"'
