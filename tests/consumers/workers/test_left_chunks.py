"""A chunk that another worker commits is not computed again, although it was claimed before."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.build import build
from consumers.build_report import BuildReport
from consumers.workers.share import Share
from tests.conftest import tree_digest
from tests.faults.fakes import CHUNK, VIEWS, FakeText, config, loaded, make, make_data

SAMPLES, CHUNKS = 24, 6
FEATURE = "clip_text"
OPTIONS: dict[str, Any] = {"features": (FEATURE,), "batch_sizes": {FEATURE: CHUNK * VIEWS}}


def commit_from(golden: Path, store: Path, chunks: set[int]) -> None:
    """Commits chunks as another worker does: their files, then their records."""
    lines = (golden / "records" / "ledger.jsonl").read_bytes().splitlines()
    for chunk in sorted(chunks):
        for file in golden.rglob(f"c.{chunk}.*"):
            shutil.copyfile(file, store / file.relative_to(golden))
        record = store / "records" / "commits" / f"{chunk:08d}"
        record.parent.mkdir(exist_ok=True)
        record.write_bytes(lines[chunk])


class Watched:
    """A worker's build; when it computes its first chunk, others commit all other ones.

    Args:
        golden: the finished store.
        store: the store of the worker.
        samples: how many samples the worker has taken before the others commit.
        left: the chunks that they do not commit.
    """

    def __init__(self, golden: Path, store: Path, samples: int, left: set[int]) -> None:
        self._golden, self._store = golden, store
        self._others = set(range(CHUNKS)) - left
        self._samples, self._taken = samples, 0
        self._enough = threading.Event()
        self.computed: list[int] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def build(self, **options: Any) -> BuildReport:
        data = self._golden.parent / "data"
        values = {**OPTIONS, "resume": True, "worker": Share(0, 2), **options}
        given = config(data, self._store, **values)
        with loaded({FEATURE: self._embed}):
            return build(given, [self._heard])

    def _heard(self, event: str, facts: Mapping[str, Any]) -> None:
        self.events.append((event, facts))
        self._taken += event == "sample"
        if self._taken >= self._samples:
            self._enough.set()

    def _embed(self, _: FakeText, ids: torch.Tensor, honest: Callable[[], torch.Tensor]) -> Any:
        if not self.computed:
            assert self._enough.wait(60)
            commit_from(self._golden, self._store, self._others)
        self.computed.append(len(ids))
        return honest()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    make(make_data(tmp_path / "data", SAMPLES), tmp_path / "golden", **OPTIONS)
    return tmp_path / "golden"


# The next chunk is partly, or completely, filled and launched when the others commit it.
@pytest.mark.parametrize("samples", [1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_claimed_chunks_that_others_commit_are_left(
    golden: Path, tmp_path: Path, samples: int
) -> None:
    worker = Watched(golden, tmp_path / "store", samples, {0})
    report = worker.build()
    assert len(worker.computed) == 1, "a committed chunk was computed"
    assert report.built == CHUNK
    assert [facts["chunk"] for event, facts in worker.events if event == "chunk"] == [0]
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


def test_chunks_between_those_that_are_left_are_built(golden: Path, tmp_path: Path) -> None:
    worker = Watched(golden, tmp_path / "store", 2 * CHUNK, {0, 2, 4})
    report = worker.build(slots=3)
    assert len(worker.computed) == 3
    assert report.built == 3 * CHUNK
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


def test_a_build_by_one_process_computes_every_chunk(golden: Path, tmp_path: Path) -> None:
    worker = Watched(golden, tmp_path / "store", CHUNK, set(range(CHUNKS)))
    worker.build(worker=None)
    assert len(worker.computed) == CHUNKS
