"""Readers of stores whose chunks are partly records, also while processes commit and seal."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore.training.dataset as datasets
from featurestore.errors import InputError
from featurestore.imdb.materialize import materialize
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.training.dataset import FeatureDataset
from tests.featurestore.stores import make_store, record, remake, tree, unseal
from tests.featurestore.worlds import World

pytestmark = pytest.mark.usefixtures("unsynced")
CHUNKS = 24
COMMITS = "records/commits"


@pytest.fixture
def unsealed(world: World, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(world.store, tmp_path / "store"))
    unseal(path, kept=[1])
    return path


def seal(path: Path) -> None:
    with StoreWriter(path, take_lock(path)) as writer:
        writer.finish()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zscore": "none", "bad_samples": "exclude"},
        {"views": "random", "zscore": "train", "split": "train"},
        {"views": "pair", "labels": "augmented", "checksum": True},
        {"views": "mean", "partial": True},
    ],
)
def test_a_dataset_reads_records_and_lines_alike(
    world: World, unsealed: Path, options: dict[str, Any]
) -> None:
    common: dict[str, Any] = {"bad_samples": "include", "split_json": world.split}
    if "labels" in options:
        common["labels_dir"] = world.root / "labels"
    sealed, other = (FeatureDataset(p, **common | options) for p in (world.store, unsealed))
    assert sealed.indices.tolist() == other.indices.tolist()
    for index in range(len(sealed)):
        for name, value in sealed[index].items():
            np.testing.assert_array_equal(other[index][name], value)


def test_records_of_samples_and_moments_are_those_of_the_ledger(
    world: World, unsealed: Path
) -> None:
    sealed, other = FeatureStore(world.store), FeatureStore(unsealed)
    assert other.complete
    assert other.records == sealed.records
    assert other.bad_inputs == sealed.bad_inputs
    for name in sealed.features:
        one, two = sealed.moments(name), other.moments(name)
        np.testing.assert_array_equal(one.mean, two.mean)
        np.testing.assert_array_equal(one.m2, two.m2)


def test_materialized_files_are_those_of_the_sealed_store(
    world: World, unsealed: Path, tmp_path: Path, embeddings: Path
) -> None:
    before = tree(unsealed)
    materialize(FeatureStore(unsealed), tmp_path / "files")
    assert tree(unsealed) == before  # reading seals nothing
    files, expected = tree(tmp_path / "files"), tree(embeddings)
    assert files.keys() == expected.keys()
    for name in files:
        if name.endswith(".npy"):
            assert files[name] == expected[name], name


def test_an_incomplete_store_is_refused_and_partial_reads_it(
    world: World, unsealed: Path, tmp_path: Path
) -> None:
    (unsealed / COMMITS / "00000000").unlink()
    with pytest.raises(InputError, match="is not complete: 2 of 3 chunks"):
        materialize(FeatureStore(unsealed), tmp_path / "files")
    with pytest.raises(InputError, match="is not complete"):
        FeatureDataset(unsealed)
    dataset = FeatureDataset(unsealed, partial=True, bad_samples="include", zscore="none")
    assert dataset.indices.tolist() == list(range(4, 11))
    np.testing.assert_array_equal(dataset[0]["clip_image"], world.rows["clip_image"][4, 0])


def test_a_seal_while_a_dataset_is_opened_changes_nothing(
    world: World, unsealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first feature and the look for replaced rows."""
    check: Any = vars(datasets)["require_unchanged"]
    calls: list[Any] = []

    def late(*arguments: Any) -> None:
        seal(unsealed)
        calls.append(arguments)
        check(*arguments)

    monkeypatch.setattr(datasets, "require_unchanged", late)
    dataset = FeatureDataset(unsealed, zscore="none", bad_samples="include")
    assert calls
    assert not (unsealed / COMMITS).exists()
    np.testing.assert_array_equal(dataset[9]["clip_text"], world.rows["clip_text"][9, 0])


def test_rows_replaced_while_a_dataset_is_opened_are_noticed(
    world: World, unsealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check: Any = vars(datasets)["require_unchanged"]

    def late(*arguments: Any) -> None:
        remake(unsealed, 2, {name: rows + 1 for name, rows in world.rows.items()})
        check(*arguments)

    monkeypatch.setattr(datasets, "require_unchanged", late)
    with pytest.raises(InputError, match="were replaced while they were being opened"):
        FeatureDataset(unsealed, bad_samples="include")


def test_a_pickled_dataset_is_opened_again_after_the_seal(world: World, unsealed: Path) -> None:
    dataset = FeatureDataset(unsealed, zscore="all", bad_samples="include")
    data = pickle.dumps(dataset)
    seal(unsealed)
    again = pickle.loads(data)
    for index in range(len(dataset)):
        np.testing.assert_array_equal(again[index]["clip_image"], dataset[index]["clip_image"])


# Beside other processes -------------------------------------------------------------------------


class Beside:
    """Another process that runs ``action``; a context manager that waits for it."""

    def __init__(self, action: Callable[[], None]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as in ``killed_at``
            self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                action()
                code = 0
            finally:
                os._exit(code)
        self._code: int | None = None

    def is_running(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is None

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        assert self._code == 0


def test_a_store_is_complete_at_every_moment_of_a_seal(tmp_path: Path) -> None:
    """Another process seals a store after the other, and readers open them all the time."""
    rows = make_store(tmp_path / "made", samples=4 * CHUNKS)
    stores = [tmp_path / f"{i}" for i in range(12)]
    for path in stores:
        shutil.copytree(tmp_path / "made", path)
        unseal(path, kept=[3])

    def work() -> None:
        for path in stores:
            seal(path)

    opened = {True: 0, False: 0}
    expected = rows["clip_image"][:, 0]
    with Beside(work) as other:
        for path in stores:
            while other.is_running() and (path / COMMITS).exists():
                dataset = FeatureDataset(path, ["clip_image"], zscore="none")
                items = [dataset[index]["clip_image"] for index in range(0, len(dataset), 4)]
                np.testing.assert_array_equal(np.stack(items), expected[::4])
                opened[(path / COMMITS).exists()] += 1
    assert sum(opened.values()) >= 5, opened
    for path in stores:
        assert tree(path) == tree(tmp_path / "made")


def test_partial_reads_whole_chunks_while_a_worker_commits(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rows = make_store(path, samples=4 * CHUNKS, chunks=[])
    counts = [0]

    def work() -> None:
        record(path, [*range(0, CHUNKS, 2), *range(1, CHUNKS, 2)], rows)

    with Beside(work) as other:
        while other.is_running():
            if not FeatureStore(path).ledger.committed:
                continue
            dataset = FeatureDataset(path, partial=True, zscore="none", checksum=True)
            for place, index in enumerate(dataset.indices):
                np.testing.assert_array_equal(
                    dataset[place]["clip_text"], rows["clip_text"][index, 0]
                )
            counts.append(len(dataset))
    assert counts == sorted(counts)
    assert all(count % 4 == 0 for count in counts)
    assert len(set(counts)) > 1
    assert FeatureStore(path).complete
