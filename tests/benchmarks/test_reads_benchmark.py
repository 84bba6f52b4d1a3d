"""The readers of ``benchmarks/reads.py`` that need no environment of their own, on a few rows."""

import mmap
import resource
from pathlib import Path

import numpy as np
import pytest

from benchmarks import page_cache
from benchmarks.libraries import LIBRARIES, LOADERS, interpreters
from benchmarks.peer_datasets import HuggingFace
from benchmarks.peer_loader import Loader, MemmapLoader
from benchmarks.peer_manyviews import Dataset, PageByPage, Scaled, Taken
from benchmarks.peer_numpy import FILE, Memmap
from benchmarks.peer_torch import Tensor
from benchmarks.peer_zarr import Zarr
from benchmarks.reading import BATCH_ROWS, ROWS, SAMPLES, Reader, Rows, Session, require_equal

SHAPE = (100, 8, 16)
READERS = (Memmap, Tensor, Dataset, PageByPage, Scaled, Taken, Zarr, HuggingFace)


@pytest.fixture(scope="module")
def values() -> Rows:
    return np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)


@pytest.fixture
def session(values: Rows, tmp_path: Path) -> Session:
    """A session over a memmap, on a file that holds the values."""
    reference = str(tmp_path / "reference.npy")
    np.save(reference, values.reshape(-1, SHAPE[2]))
    session = Session(Memmap, lap_s=0)
    session.place(str(tmp_path / "files"), list(SHAPE), SAMPLES)
    session.write(reference)
    session.check(reference)
    return session


@pytest.mark.parametrize("layout", [ROWS, SAMPLES])
@pytest.mark.parametrize("kind", READERS)
def test_readers_give_back_what_they_wrote(
    kind: type[Reader], layout: str, values: Rows, tmp_path: Path
) -> None:
    kind.write(values, tmp_path, layout)
    reader = kind(tmp_path, SHAPE, layout)
    expected = kind.expected(values)
    require_equal(reader, expected)
    reader.close()
    wrong = expected.copy()
    wrong[:, :, -1] += 0.01
    with pytest.raises(SystemExit, match="other numbers"):
        require_equal(kind(tmp_path, SHAPE, layout), wrong)


@pytest.mark.parametrize("kind", [Loader, MemmapLoader])
def test_loaders_give_each_clean_view_once(
    kind: type[Reader], values: Rows, tmp_path: Path
) -> None:
    kind.write(values, tmp_path, ROWS)
    require_equal(kind(tmp_path, SHAPE, ROWS), values)
    with pytest.raises(SystemExit, match="other numbers"):
        require_equal(kind(tmp_path, SHAPE, ROWS), values[::-1][:-1])


def test_warm_laps_count_rows(session: Session) -> None:
    assert session.warm("samples", seed=0)[0] == 64 * SHAPE[1]
    units, seconds = session.warm("scan", seed=0)
    assert (units, seconds > 0) == (SHAPE[0] * SHAPE[1], True)
    assert session.warm("rows", seed=0)[0] == BATCH_ROWS


def test_pages_are_mapped_before_warm_laps(tmp_path: Path) -> None:
    np.save(tmp_path / "pages.npy", np.zeros(1 << 20, np.uint8))
    mapped = np.load(tmp_path / "pages.npy", mmap_mode="r")
    page_cache.map_pages(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert mapped[:: mmap.PAGESIZE].max() == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10  # of 256, or 16 at once


def test_cold_laps_find_nothing_in_memory(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "files" / FILE
    page_cache.load([file])
    assert page_cache.resident_bytes([file]) >= file.stat().st_size
    page_cache.drop([file])
    if page_cache.resident_bytes([file]):
        pytest.skip("the temporary folder is no disk")
    units, seconds, opened, resident = session.cold("scan", seed=0)
    assert units == SHAPE[0] * SHAPE[1]
    assert 0 < opened < seconds
    assert resident >= file.stat().st_size


def test_files_that_stay_in_memory_are_not_called_cold(session: Session, tmp_path: Path) -> None:
    mapped = np.load(tmp_path / "files" / FILE, mmap_mode="r")
    assert mapped.sum() > 0
    with pytest.raises(SystemExit, match="stay in memory"):
        session.cold("scan", seed=0)


def test_peers_without_an_environment_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.environments.FOLDER", tmp_path)
    found, left_out = interpreters(LIBRARIES | LOADERS, make=False)
    assert {name for name, lib in LIBRARIES.items() if lib.needs} == set(left_out)
    assert "pylance==14.0.2" in left_out["Lance"]
    assert found.keys() | left_out.keys() == (LIBRARIES | LOADERS).keys()
