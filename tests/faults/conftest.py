"""One zygote and one golden build per test process, and the line of counts at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.counting import (  # noqa: F401  hooks
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.faults.harness import Bench, Zygote


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    zygote = Zygote()
    yield Bench(tmp_path_factory.mktemp("bench"), zygote)
    zygote.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
