"""A store with compressed chunks: smaller and not mapped, but otherwise equal."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import CorruptStoreError
from featurestore.imdb.materialize import materialize
from featurestore.storage.codecs import CODECS, compress, decompress
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests.featurestore.stores import (
    DIMS,
    StoreAndRows,
    commit,
    make_records,
    make_store,
    tree,
    zarr_rows,
)
from tests.featurestore.worlds import BAD, STEMS, World


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("archive") / "store"
    return path, make_store(path, stems=STEMS, bad=BAD, codec="zstd")


@pytest.fixture
def copy(archive: StoreAndRows, tmp_path: Path) -> Path:
    return shutil.copytree(archive[0], tmp_path / "store")


@given(st.binary(min_size=1), st.sampled_from(CODECS))
def test_what_goes_in_comes_out(data: bytes, codec: str) -> None:
    body = compress(codec, memoryview(data))
    assert bytes(decompress(codec, body, len(data))) == data
    assert bytes(compress(codec, memoryview(data))) == bytes(body)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"abc", lambda b: b[2:]]
)
def test_what_cannot_be_decoded(damage: Callable[[bytes], bytes]) -> None:
    body = compress("zstd", memoryview(bytes(1000)))
    with pytest.raises(ValueError, match="zstd cannot decode"):
        decompress("zstd", memoryview(damage(bytes(body))), 1000)
    with pytest.raises(ValueError, match="1000 bytes, expected 1001"):
        decompress("zstd", body, 1001)


@pytest.mark.parametrize("name", DIMS)
def test_zarr_reads_it(archive: StoreAndRows, name: str) -> None:
    path, rows = archive
    np.testing.assert_array_equal(zarr_rows(path, name), rows[name])


@pytest.mark.parametrize("views", ["clean", 2, "all", "mean", "random", "pair"])
def test_the_same_rows_as_from_mapped_files(
    world: World, archive: StoreAndRows, views: int | str
) -> None:
    options: dict[str, Any] = {
        "views": views,
        "seed": 3,
        "bad_samples": "include",
        "checksum": True,
    }
    actual = FeatureDataset(archive[0], **options).batch([9, 0, 3, 9])
    expected = world.open(views=views, seed=3).batch([9, 0, 3, 9])
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_same_materialized_files(
    archive: StoreAndRows, embeddings: Path, tmp_path: Path
) -> None:
    materialize(FeatureStore(archive[0]), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(embeddings)


def test_moments_and_ledger_are_those_of_the_payload(world: World, archive: StoreAndRows) -> None:
    store, plain = FeatureStore(archive[0]), FeatureStore(world.store)
    assert (store.spec.codec, plain.spec.codec) == ("zstd", "none")
    for one, other in zip(store.ledger.entries, plain.ledger.entries, strict=True):
        assert {f: crc for f, (_, crc) in one.files.items()} == {
            f: crc for f, (_, crc) in other.files.items()
        }
    assert verify(archive[0]).findings == []


def test_smaller_where_there_is_something_to_save(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "wide")
    rounded = {n: (r.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, r in rows.items()}
    make_store(tmp_path / "narrow", rows=rounded, codec="zstd")
    sizes = [
        sum(f.stat().st_size for f in (tmp_path / name / "clip_text").glob("c.*"))
        for name in ("wide", "narrow")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_growing_archive(archive: StoreAndRows, tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", stems=STEMS, chunks=[1], codec="zstd")
    dataset = FeatureDataset(tmp_path / "s", views="all", zscore="none", partial=True)
    assert dataset.indices.tolist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(dataset.batch(range(4))["clip_text"], rows["clip_text"][4:8])
    with StoreWriter(tmp_path / "s", take_lock(tmp_path / "s")) as writer:
        commit(writer, [0, 2], rows, make_records(writer.spec, BAD))
        writer.finish()
    # Chunk 1 was built without the bad sample's record; all files are the archive's.
    one, other = tree(tmp_path / "s"), tree(archive[0])
    assert [n for n in other if one.get(n) != other[n]] == ["records/ledger.jsonl"]


@pytest.mark.parametrize("damage", ["flip", "first", "half", "longer", "empty", "delete", "other"])
def test_damage_is_named_and_never_read(archive: StoreAndRows, copy: Path, damage: str) -> None:
    file = "clip_image/c.1.0.0"
    path, data = copy / file, (copy / file).read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "other":  # sound, in the wrong place
        shutil.copy(copy / "clip_image/c.0.0.0", path)
    else:
        at = 0 if damage == "first" else len(data) // 2
        flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        half = data[: len(data) // 2]
        cut = {"half": half, "longer": data + b"x", "empty": b""}
        path.write_bytes(cut.get(damage, flipped))
    report = verify(copy)
    assert {(f.file, f.chunk) for f in report.findings} == {(file, 1)}
    with pytest.raises(CorruptStoreError) as caught:
        FeatureDataset(copy)[4]
    assert (caught.value.file, caught.value.chunk) == (file, 1)
    if damage not in ("flip", "first"):  # at opening, by the file's size
        with pytest.raises(CorruptStoreError):
            FeatureDataset(copy)
    lock = take_lock(copy)
    repair(copy, report)
    lock.release()
    with StoreWriter(copy, take_lock(copy)) as writer:
        commit(writer, [1], archive[1], make_records(writer.spec, BAD))
        writer.finish()
    assert tree(copy) == tree(archive[0])
