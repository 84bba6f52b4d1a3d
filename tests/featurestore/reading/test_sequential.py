"""Consecutive samples read from files equal the rows of the mapping."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from featurestore import FeatureDataset
from featurestore.errors import StorageError
from featurestore.reading import sequential
from featurestore.reading.rows import store_rows
from featurestore.reading.scaling import scale_for
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import make_store

SAMPLES = 37


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", samples=SAMPLES, views=4, chunk=8)
    return tmp_path / "store"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """The reads from files: the first sample and the number of samples of each."""
    seen, real = [], sequential.FilesInOrder.read

    def read(self: sequential.FilesInOrder, first: int, out: npt.NDArray[np.float32]) -> bool:
        done = real(self, first, out)
        seen.append((first, len(out), done))
        return done

    monkeypatch.setattr(sequential.FilesInOrder, "read", read)
    return seen


@pytest.mark.parametrize("zscore", ["none", "all"])
@pytest.mark.parametrize(("first", "last"), [(0, 37), (0, 8), (3, 5), (7, 9), (6, 33), (32, 37)])
def test_the_rows_are_those_of_the_mapping(
    folder: Path, reads: list[tuple[int, int, bool]], zscore: str, first: int, last: int
) -> None:
    store = FeatureStore(folder)
    scale = scale_for(store, "clip_image", zscore, None)
    rows = store_rows(store, "clip_image", scale, advice="random")
    mapped = store_rows(store, "clip_image", scale, advice="none")
    samples = np.arange(first, last)
    actual = rows.take(samples, "all")
    np.testing.assert_array_equal(actual, mapped.take(samples, "all"))
    assert reads == [(first, last - first, True)]
    assert actual.flags.writeable
    np.testing.assert_array_equal(rows.take(samples, "mean"), mapped.take(samples, "mean"))


def test_other_batches_come_from_the_mapping(
    folder: Path, reads: list[tuple[int, int, bool]]
) -> None:
    rows = store_rows(FeatureStore(folder), "clip_image", None, advice="random")
    for samples in ([5], [5, 4], [5, 7], [5, 5], []):
        assert rows.take(np.array(samples, np.int64), "all").shape == (len(samples), 4, 64)
    rows.take(np.arange(9), 0)
    with pytest.raises(IndexError):
        rows.take(np.arange(30, 38), "all")
    assert reads == []


def test_what_is_cached_when_it_is_opened_is_mapped(
    folder: Path, reads: list[tuple[int, int, bool]]
) -> None:
    dataset = FeatureDataset(folder, views="all", advice="populate")
    dataset.batch(range(9))
    assert reads == []


def test_a_replaced_file_is_not_the_one_that_was_opened(
    folder: Path, reads: list[tuple[int, int, bool]]
) -> None:
    rows = store_rows(FeatureStore(folder), "clip_image", None, advice="random")
    before = rows.take(np.arange(8, 16), "all")
    file = folder / "clip_image/c.1.0.0"
    (folder / "new").write_bytes(bytes(file.stat().st_size))
    (folder / "new").replace(file)
    np.testing.assert_array_equal(rows.take(np.arange(8, 16), "all"), before)
    file.unlink()
    np.testing.assert_array_equal(
        rows.take(np.arange(6, 18), "all"),
        np.concatenate(
            [
                rows.take(np.array([7, 6]), "all")[::-1],
                before,
                rows.take(np.array([17, 16]), "all")[::-1],
            ]
        ),
    )
    assert [done for _, _, done in reads] == [True, False, False]


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = store_rows(FeatureStore(folder), "clip_image", None, advice="random")

    def refuse(*_: object) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        rows.take(np.arange(8), "all")
