"""A feature's array that was rewritten with other codecs, through zarr-python."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from featurestore.errors import CorruptStoreError
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.system.locks import FileLock
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from tests.featurestore.stores import DIMS
from tests.featurestore.worlds import World

WAYS: dict[str, dict[str, Any]] = {
    "zstd": {"compressors": [ZstdCodec(level=3)]},
    "gzip": {"compressors": [GzipCodec()]},
    "blosc": {"compressors": [BloscCodec(cname="zstd"), Crc32cCodec()]},
    "big-endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "other chunks": {"chunks": (3, 2, 64), "compressors": [ZstdCodec()]},
    "sharded": {"shards": (4, 4, 64), "chunks": (1, 4, 64), "compressors": [ZstdCodec()]},
}


def rewrite(
    store: Path,
    name: str = "clip_image",
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    **options: Any,
) -> None:
    """Replaces an array by one of the same values, written with zarr alone."""
    values = change(np.asarray(zarr.open_array(store / name, mode="r")[:]))
    shutil.rmtree(store / name)
    options = {"chunks": (4, *values.shape[1:])} | options
    array = zarr.create_array(
        store / name,
        shape=values.shape,
        dtype=values.dtype,
        fill_value=float("nan"),
        zarr_format=3,
        **options,
    )
    array[:] = values


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    return shutil.copytree(world.store, tmp_path / "store")


@pytest.mark.parametrize("way", WAYS)
def test_the_same_rows(world: World, copy: Path, tmp_path: Path, way: str) -> None:
    rewrite(copy, **WAYS[way])
    for views in ("clean", "all", "mean", "random", "pair"):
        options: dict[str, Any] = {"views": views, "bad_samples": "include", "checksum": True}
        expected = world.open(views=views).batch([9, 0, 3, 9])
        actual = FeatureDataset(copy, **options).batch([9, 0, 3, 9])
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    materialize(FeatureStore(copy), tmp_path / "out", zscore="train", split_json=world.split)
    rows = np.load(tmp_path / "out" / f"{PREFIX}_clip_image.npy").reshape(11, 4, 64)
    expected = world.open(views="all", zscore="train", split_json=world.split).batch(range(11))
    assert rows.tobytes() == expected["clip_image"].numpy().tobytes()


def test_pickles_and_loader_workers(world: World, copy: Path) -> None:
    rewrite(copy, **WAYS["zstd"])
    dataset = FeatureDataset(copy, views="random", bad_samples="include")
    assert len(pickle.dumps(dataset)) < 2000
    dataset[0]  # zarr has threads now, and a fork must not wait for them
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    actual = torch.cat([batch["clip_image"] for batch in loader])
    assert torch.equal(actual, world.open(views="random").batch(range(11))["clip_image"])


def test_other_values_are_never_numbers(copy: Path) -> None:
    def narrower(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16).astype(np.float32)

    rewrite(copy, change=narrower, **WAYS["zstd"])
    dataset = FeatureDataset(copy)
    with pytest.raises(CorruptStoreError, match="not what was committed") as caught:
        dataset[0]
    assert (caught.value.file, caught.value.chunk) == ("clip_image", 0)
    with pytest.raises(CorruptStoreError, match="not what was committed"):
        FeatureDataset(copy, checksum=True)
    assert FeatureDataset(copy, ["clip_text"], checksum=True)[0]["clip_text"].isfinite().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", ["flip", "half", "empty", "delete"])
def test_a_damaged_file_is_never_a_number(world: World, copy: Path, way: str, damage: str) -> None:
    rewrite(copy, **WAYS[way])
    files = sorted(p for p in (copy / "clip_image" / "c").rglob("*") if p.is_file())
    path = files[len(files) // 2]
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    if damage == "delete":
        path.unlink()  # zarr reads a missing chunk as NaN
    else:
        path.write_bytes(
            {"flip": bytes(flipped), "half": data[: len(data) // 2], "empty": b""}[damage]
        )
    dataset = FeatureDataset(copy, views="all", zscore="none", bad_samples="include")
    refused = []
    for sample in range(11):
        try:
            actual = dataset[sample]["clip_image"].numpy()
        except CorruptStoreError as e:
            refused.append(e.file)
        else:
            np.testing.assert_array_equal(actual, world.rows["clip_image"][sample])
    assert set(refused) == {"clip_image"}
    assert len(refused) < 11 or way == "other chunks"
    with pytest.raises(CorruptStoreError):
        FeatureDataset(copy, checksum=True)


def test_another_shape_or_type_is_refused_at_opening(copy: Path) -> None:
    rewrite(copy, change=lambda values: values.astype(np.float64), **WAYS["zstd"])
    with pytest.raises(CorruptStoreError, match="data_type"):
        FeatureDataset(copy)
    rewrite(copy, change=lambda values: values[:10].astype(np.float32), **WAYS["zstd"])
    with pytest.raises(CorruptStoreError, match="shape"):
        FeatureDataset(copy)


def test_codecs_that_zarr_does_not_know(copy: Path) -> None:
    path = copy / "clip_image/zarr.json"
    document = json.loads(path.read_bytes())
    for codecs in ([{"name": "bytes"}, {"name": "mystery"}], [], "zstd", None, [3]):
        path.write_text(json.dumps(document | {"codecs": codecs}))
        with pytest.raises(CorruptStoreError, match="codecs is") as caught:
            FeatureDataset(copy)
        assert caught.value.file == "clip_image/zarr.json"


def test_a_document_with_wrong_codecs_for_our_files(world: World, copy: Path) -> None:
    path = copy / "clip_image/zarr.json"
    document = json.loads(path.read_bytes())
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    big = {"name": "bytes", "configuration": {"endian": "big"}}
    for codecs in ([little], [big, {"name": "crc32c"}]):
        path.write_text(json.dumps(document | {"codecs": codecs}))
        with pytest.raises(CorruptStoreError, match="clip_image"):
            FeatureDataset(copy)[0]


def test_a_build_refuses_a_rewritten_store_and_verify_reports_it(copy: Path) -> None:
    rewrite(copy, **WAYS["zstd"])
    assert "clip_image/zarr.json" in {finding.file for finding in verify(copy).findings}
    with (
        take_lock_of(copy) as lock,
        pytest.raises(CorruptStoreError, match="not those of the build"),
    ):
        StoreWriter(copy, lock)


class take_lock_of:
    def __init__(self, path: Path) -> None:
        self.lock = take_lock(path)

    def __enter__(self) -> FileLock:
        return self.lock

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


def test_both_features(world: World, copy: Path) -> None:
    for name in DIMS:
        rewrite(copy, name, compressors=[ZstdCodec()])
    actual = FeatureDataset(copy, views="pair", seed=3, bad_samples="include").batch(range(11))
    expected = world.open(views="pair", seed=3).batch(range(11))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
