"""One zygote and one golden build per test process, and the line of counts at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.faults.counting import (  # noqa: F401  hooks
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.faults.harness import Bench, Zygote

ONE = {"features": ["clip_text"], "batch_sizes": {"clip_text": 16}}


@pytest.fixture(scope="module", autouse=True)
def forked_children() -> Iterator[None]:
    """Builds and pools of this process fork their producers."""
    with forked.children():
        yield


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    zygote = Zygote()
    yield Bench(tmp_path_factory.mktemp("bench"), zygote)
    zygote.close()


@pytest.fixture(scope="session")
def short(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench with six chunks, more than are in flight at a time, so that a stop leaves some."""
    return Bench(tmp_path_factory.mktemp("short"), bench.zygote, views=16, chunk=2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(scope="session")
def grown(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores to extend, what they are to become, and a folder with three more samples."""
    folder = tmp_path_factory.mktemp("grown")
    more = folder / "more"
    shutil.copytree(bench.data, more)
    for stem in ("0000011", "0000012", "zzz"):
        (more / f"{stem}.jpg").write_bytes(b"not looked at")
        (more / f"{stem}.json").write_text(json.dumps({"plot": f"a plot of {stem}"}))
    done = bench.run(
        [
            bench.build(folder / "one", **ONE),
            bench.build(folder / "two"),
            bench.build(folder / "sixteen", views=16),
            bench.build(folder / "fourteen", data_dir=str(more)),
        ]
    )
    assert done.kind == "done", done
    return folder
