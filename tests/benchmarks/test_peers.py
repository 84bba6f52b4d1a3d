"""The programs that manyviews is compared with do the same work: they make the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import peer_dataloader, peer_naive
from benchmarks.peer_faults import Kept, damage
from benchmarks.peer_job import Rows, Work
from benchmarks.peer_jobs import npy_rows
from consumers.build import build
from consumers.config import BuildConfig
from featurestore.storage.store import FeatureStore

VIEWS, SAMPLES = 5, 3


@pytest.fixture(scope="module")
def data(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first samples of the demo that are sound."""
    folder = tmp_path_factory.mktemp("peers") / "data"
    folder.mkdir()
    texts = sorted((demo_data / "dataset").glob("*.json"))[1 : SAMPLES + 1]
    for text in texts:
        for file in text.parent.glob(f"{text.stem}.*"):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def expected(
    data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Rows:
    """manyviews' rows by stem."""
    store = tmp_path_factory.mktemp("peers") / "store"
    models = {"clip_image": checkpoints["clip_image"]}
    build(
        BuildConfig(
            data_dir=data,
            store=store,
            views=VIEWS,
            features=("clip_image",),
            models=models,
            device="cpu",
        )
    )
    found = FeatureStore(store)
    assert not found.bad_inputs
    return dict(zip(found.stems, found.read_chunk("clip_image", 0), strict=True))


@pytest.mark.parametrize("program", [peer_naive, peer_dataloader])
def test_program_makes_the_rows_of_the_store(
    program: ModuleType,
    data: Path,
    expected: Rows,
    checkpoints: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    work = Work(data, tmp_path, tmp_path, VIEWS)
    run: Callable[[dict[str, Any]], None] = program.run
    run(
        {
            "data": str(data),
            "model": checkpoints["clip_image"],
            "views": VIEWS,
            "out": str(tmp_path / "out"),
            "marks": str(tmp_path / "marks"),
            "workers": 0,
        }
    )
    found = npy_rows("clip_image")(work, tmp_path)
    assert list(found) == list(expected)
    for stem, rows in expected.items():
        assert rows.std() > 0.1
        np.testing.assert_allclose(found[stem], rows, rtol=0, atol=1e-5)


def test_rows_are_told_apart() -> None:
    rows = {
        name: np.full((2, 3), value, np.float32)
        for name, value in zip("abcd", range(1, 5), strict=True)
    }
    assert str(Kept.of(rows, dict(rows))) == "all rows right"
    assert str(Kept.of(rows, {})) == "nothing kept"
    found = {"a": rows["a"], "b": np.zeros((2, 3), np.float32), "c": rows["d"]}
    assert Kept.of(rows, found) == Kept(right=1, blank=1, other=1, missing=1)
    assert str(Kept.of(rows, found)) == "1 of 4 kept, 1 blank rows among them, 1 wrong"


def test_damage_cuts_one_file_and_leaves_the_sound_one(data: Path, tmp_path: Path) -> None:
    work = Work(data, tmp_path, tmp_path, VIEWS)
    before = {file.name: file.read_bytes() for file in data.iterdir()}
    broken = damage(work, tmp_path / "broken", "image")
    after = {file.name: file.read_bytes() for file in broken.data.iterdir()}
    assert {file.name: file.read_bytes() for file in data.iterdir()} == before
    changed = [name for name in before if after[name] != before[name]]
    assert [Path(name).stem for name in changed] == sorted(broken.damaged)
    assert len(changed) == 1
    assert len(after[changed[0]]) == len(before[changed[0]]) // 2
