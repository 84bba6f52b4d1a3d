"""Samples without an image or a text in ``FeatureDataset``: left out, or kept as zeros."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from featurestore import FeatureDataset
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.materialize import materialize
from featurestore.records import BadInput
from featurestore.sampling.samplers import FeatureBatchSampler
from featurestore.sampling.sharding import Shard
from featurestore.storage.store import FeatureStore
from featurestore.training.device import DeviceBatches
from featurestore.training.resident import Residency, ResidentFeatures
from tests.featurestore.stores import StoreAndRows, make_generic_store

# The whole second chunk has no text; sample 9 has neither input.
ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
IMAGES, TEXTS = [0, 1, 3, 4, 5, 6, 7, 8, 10], [0, 2, 3, 8, 10]
BOTH = [0, 3, 8, 10]
KEPT = {"clip_image": IMAGES, "clip_text": TEXTS}
EPSILON = 1e-6


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("absent") / "store"
    return path, make_generic_store(path, ABSENT)


def expected(rows: dict[str, np.ndarray], name: str, used: list[int]) -> np.ndarray:
    """NumPy's z-score in float64 over the rows of ``used``; zeros where the input is absent."""
    wide = rows[name].astype(np.float64)
    of = wide[used].reshape(-1, wide.shape[2])
    scaled = (wide - of.mean(axis=0)) / (of.std(axis=0) + EPSILON)
    scaled[[i for i in range(len(wide)) if i not in KEPT[name]]] = 0
    return np.asarray(scaled)


def assert_near(actual: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(actual.numpy(), wanted, atol=2e-5)
    zeros = ~wanted.any(axis=-1)
    assert not actual.numpy()[zeros].any()  # exactly


def test_samples_that_lack_an_input_are_left_out(stored: StoreAndRows) -> None:
    path, rows = stored
    for features, kept in ((None, BOTH), (["clip_image"], IMAGES), (["clip_text"], TEXTS)):
        data = FeatureDataset(path, features, views="all")
        assert data.indices.tolist() == kept
        batch = data.batch(range(len(data)))
        assert "present" not in batch
        assert "present" not in data[0]
        for name in data.features:
            assert_near(batch[name], expected(rows, name, KEPT[name])[kept])


@pytest.mark.parametrize("views", ["clean", 2, "all", "mean", "random", "pair"])
@pytest.mark.parametrize("zscore", ["all", "none"])
def test_zeros_are_exact_and_marked_in_every_view(
    stored: StoreAndRows, views: str | int, zscore: str
) -> None:
    path, rows = stored
    data = FeatureDataset(path, views=views, zscore=zscore, missing="zero", seed=3)
    batch = data.batch(range(11))
    assert list(batch) == ["clip_image", "clip_text", "index", "present"]
    assert batch["present"].dtype is torch.bool
    for column, name in enumerate(data.features):
        kept = KEPT[name]
        assert torch.nonzero(batch["present"][:, column]).flatten().tolist() == kept
        absent = [i for i in range(11) if i not in kept]
        assert not batch[name][absent].any()
        assert batch[name][kept].flatten(1).any(dim=1).all()
        whole = expected(rows, name, kept) if zscore == "all" else rows[name]
        fixed: dict[str | int, np.ndarray] = {
            "clean": whole[:, 0],
            2: whole[:, 2],
            "all": whole,
            "mean": whole.mean(axis=1),
        }
        if views in fixed:
            assert_near(batch[name], fixed[views])
    item = data[4]
    assert item["present"].tolist() == [True, False]
    assert not item["clip_text"].any()


def test_order_of_present_is_that_of_the_features(stored: StoreAndRows) -> None:
    data = FeatureDataset(stored[0], ["clip_text", "clip_image"], missing="zero")
    assert data[2]["present"].tolist() == [True, False]
    assert data.batch([1, 9])["present"].tolist() == [[False, True], [False, False]]
    assert FeatureDataset(stored[0], ["clip_text"], missing="zero").batch([0, 1])[
        "present"
    ].tolist() == [[True], [False]]


def test_present_is_there_where_nothing_is_absent(tmp_path: Path) -> None:
    make_generic_store(tmp_path / "store", {})
    data = FeatureDataset(tmp_path / "store", missing="zero")
    assert data.batch(range(11))["present"].all()


def test_another_word_for_missing_is_refused(stored: StoreAndRows) -> None:
    with pytest.raises(ConfigError, match="missing is exclude or zero, found 'keep'"):
        FeatureDataset(stored[0], missing="keep")


def test_nothing_left_says_what_was_left_out(tmp_path: Path) -> None:
    absent = {i: "text" if i % 2 else "image" for i in range(11)}
    make_generic_store(tmp_path / "store", absent)
    with pytest.raises(InputError, match="11 samples without the input of a feature left out"):
        FeatureDataset(tmp_path / "store")
    assert len(FeatureDataset(tmp_path / "store", missing="zero")) == 11


def test_bfloat16_zeros(stored: StoreAndRows) -> None:
    data = FeatureDataset(stored[0], missing="zero", dtype=torch.bfloat16)
    assert not data.batch([1])["clip_text"].any()


def write_split(path: Path, **parts: list[int]) -> Path:
    stems = {name: [f"folder/{i:03d}" for i in of] for name, of in parts.items()}
    path.write_text(json.dumps(stems))
    return path


@pytest.mark.parametrize("missing", ["exclude", "zero"])
def test_train_scale_uses_present_rows_without_placeholders(tmp_path: Path, missing: str) -> None:
    bad = {8: [BadInput(8, "image", "truncated", "it ends")]}
    rows = make_generic_store(tmp_path / "store", ABSENT, bad=bad)
    split = write_split(
        tmp_path / "split.json", train=[0, 1, 2, 3, 4, 8, 9], dev=[5, 6], test=[7, 10]
    )
    data = FeatureDataset(
        tmp_path / "store",
        views="all",
        split="train",
        split_json=split,
        zscore="train",
        missing=missing,
    )
    kept = [0, 3] if missing == "exclude" else [0, 1, 2, 3, 4, 9]
    assert data.indices.tolist() == kept
    batch = data.batch(range(len(data)))
    assert_near(batch["clip_image"], expected(rows, "clip_image", [0, 1, 3, 4])[kept])
    assert_near(batch["clip_text"], expected(rows, "clip_text", [0, 2, 3])[kept])


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_mapped_and_decoded_chunks(tmp_path: Path, codec: str) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT, codec=codec)
    batch = FeatureDataset(tmp_path / "store", views="all", missing="zero").batch(range(11))
    for name in rows:
        assert_near(batch[name], expected(rows, name, KEPT[name]))


def test_a_growing_store(tmp_path: Path) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT, chunks=[0, 2])
    data = FeatureDataset(tmp_path / "store", ["clip_text"], views="all", partial=True)
    assert data.indices.tolist() == TEXTS
    assert_near(data.batch(range(5))["clip_text"], expected(rows, "clip_text", TEXTS)[TEXTS])
    both = FeatureDataset(tmp_path / "store", missing="zero", partial=True)
    assert both.indices.tolist() == [0, 1, 2, 3, 8, 9, 10]
    assert both.batch([1])["present"].tolist() == [[True, False]]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("missing", ["exclude", "zero"])
def test_copies_in_other_processes_read_the_same(stored: StoreAndRows, missing: str) -> None:
    data = FeatureDataset(stored[0], views="random", missing=missing)
    again = pickle.loads(pickle.dumps(data))
    assert equal(again.batch(range(len(data))), data.batch(range(len(data))))
    loader: Any = DataLoader(data, batch_size=len(data), num_workers=1)
    (batch,) = loader
    assert equal(batch, data.batch(range(len(data))))


def test_loaders_stack_present(stored: StoreAndRows) -> None:
    data = FeatureDataset(stored[0], missing="zero")
    whole = data.batch(range(11))
    loader: Any = DataLoader(ConcatDataset([data]), batch_size=4)
    joined = {name: torch.cat([batch[name] for batch in loader]) for name in whole}
    assert equal(joined, whole)
    item_by_item: Any = DataLoader([data[i] for i in range(11)], batch_size=11)  # type: ignore[arg-type]
    assert equal(next(iter(item_by_item)), whole)


@pytest.mark.parametrize("missing", ["exclude", "zero"])
def test_samplers_and_shards_read_each_kept_sample_once(stored: StoreAndRows, missing: str) -> None:
    data = FeatureDataset(stored[0], missing=missing)
    seen = []
    for rank in range(2):
        sampler = FeatureBatchSampler(data, 2, shard=Shard(rank, 2))
        for batch in DeviceBatches(data, sampler, "cpu"):
            seen += batch["index"].tolist()
            assert ("present" in batch) == (missing == "zero")
    assert set(seen) == set(BOTH if missing == "exclude" else range(11))


@pytest.mark.parametrize("draw", [None, "random", "pair"])
def test_resident_features_hold_present(stored: StoreAndRows, draw: str | None) -> None:
    data = FeatureDataset(stored[0], views="all", missing="zero")
    resident = ResidentFeatures(data, "cpu", Residency(draw=draw, spare_bytes=0))
    batch = resident.batch(range(11))
    assert torch.equal(batch["present"], data.batch(range(11))["present"])
    assert not batch["clip_text"][[1, 4, 9]].any()
    if draw is None:
        assert equal(batch, data.batch(range(11)))


@pytest.mark.parametrize("zscore", ["all", "none"])
def test_materialized_files_read_as_the_store(
    stored: StoreAndRows, tmp_path: Path, zscore: str
) -> None:
    path, _ = stored
    materialize(FeatureStore(path), tmp_path / "files", zscore=zscore)
    for missing, views in (("exclude", "clean"), ("zero", "all"), ("zero", "pair")):
        of_store = FeatureDataset(path, views=views, zscore=zscore, missing=missing)
        of_files = FeatureDataset(
            tmp_path / "files", views=views, zscore=zscore, missing=missing, checksum=True
        )
        assert of_files.indices.tolist() == of_store.indices.tolist()
        both = range(len(of_store))
        assert equal(of_files.batch(both), of_store.batch(both))
        assert equal(pickle.loads(pickle.dumps(of_files)).batch(both), of_files.batch(both))
