import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from featurestore.dataset import FeatureDataset
from featurestore.errors import ConfigError, CorruptStoreError, InputError
from featurestore.labels import write_labels
from featurestore.materialize import PREFIX, materialize
from featurestore.records import BadInput
from featurestore.store import FeatureStore
from tests.featurestore.stores import DIMS, make_store

STEMS = [f"{i:07d}" for i in range(11)]
BAD = {3: [BadInput(3, "image", "truncated", "")], 7: [BadInput(7, "text", "not-json", "x")]}
GOOD = [0, 1, 2, 4, 5, 6, 8, 9, 10]
SPLIT = {"train": [0, 3, 5, 9], "dev": [1, 7], "test": [2, 4]}


class World:
    """A store with its rows, split and labels."""

    def __init__(self, root):
        self.root = root
        self.store = root / "store"
        self.rows = make_store(self.store, stems=STEMS, bad=BAD)
        self.split = root / "split.json"
        self.split.write_text(json.dumps({k: [STEMS[i] for i in v] for k, v in SPLIT.items()}))
        documents = [{"genres": ["Drama"] if i % 2 else ["War", "Comedy"]} for i in range(11)]
        write_labels(STEMS, documents, root / "labels")

    def open(self, **arguments) -> FeatureDataset:
        return FeatureDataset(self.store, **{"bad_samples": "include"} | arguments)

    def scaled(self, name, chosen=slice(None)):
        """The z-score written out with NumPy's own moments."""
        rows = self.rows[name]
        wide = rows[chosen].reshape(-1, rows.shape[2]).astype(np.float64)
        mu, sigma = wide.mean(0).astype(np.float32), wide.std(0).astype(np.float32)
        return (rows - mu) / (sigma + np.float32(1e-6))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("dataset"))


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("views", "reference"),
    [
        ("clean", lambda rows: rows[:, 0]),
        (0, lambda rows: rows[:, 0]),
        (3, lambda rows: rows[:, 3]),
        (np.int64(2), lambda rows: rows[:, 2]),
        ("all", lambda rows: rows),
        ("mean", lambda rows: rows.astype(np.float64).mean(axis=1)),
    ],
)
@pytest.mark.parametrize("zscore", ["all", "none"])
def test_view_policies(world, views, reference, zscore):
    dataset = world.open(views=views, zscore=zscore)
    batch = dataset.batch(range(11))
    assert batch["index"].tolist() == list(range(11))
    for name in DIMS:
        rows = world.rows[name] if zscore == "none" else world.scaled(name)
        close(batch[name], reference(rows))
        close(dataset[5][name], reference(rows)[5])
    if zscore == "none" and views != "mean":
        assert batch["clip_text"].numpy().tobytes() == reference(world.rows["clip_text"]).tobytes()


@pytest.mark.parametrize("zscore", ["all", "train", "none"])
def test_rows_are_those_of_the_files_to_the_last_bit(world, tmp_path, zscore):
    materialize(FeatureStore(world.store), tmp_path, zscore=zscore, split_json=world.split)
    batch = world.open(views="all", zscore=zscore, split_json=world.split).batch(range(11))
    for name, dim in DIMS.items():
        rows = np.load(tmp_path / f"{PREFIX}_{name}.npy").reshape(11, 4, dim)
        assert batch[name].numpy().tobytes() == rows.tobytes()


def test_train_zscore_uses_only_the_training_rows(world):
    dataset = world.open(zscore="train", split="test", split_json=world.split)
    close(dataset.batch([0, 1])["clip_text"], world.scaled("clip_text", SPLIT["train"])[[2, 4], 0])


@pytest.mark.parametrize(("part", "key"), [("train", "train"), ("val", "dev"), ("test", "test")])
def test_splits(world, part, key):
    dataset = world.open(split=part, split_json=world.split)
    assert dataset.indices.tolist() == SPLIT[key]
    assert dataset.stems == [STEMS[i] for i in SPLIT[key]]
    assert [item["index"].item() for item in dataset] == SPLIT[key]
    left = FeatureDataset(world.store, split=part, split_json=world.split)
    assert left.indices.tolist() == [i for i in SPLIT[key] if i not in BAD]


def test_bad_samples_are_left_out_by_default(world):
    dataset = FeatureDataset(world.store, zscore="none")
    assert dataset.indices.tolist() == GOOD
    close(dataset.batch(range(9))["clip_image"], world.rows["clip_image"][GOOD, 0])


def test_labels(world):
    dataset = world.open(labels_dir=world.root / "labels", split="train", split_json=world.split)
    expected = np.load(world.root / "labels/labels_all_23.npy")[SPLIT["train"]]
    found = dataset.batch(range(4))["labels"]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected)
    assert dataset[1]["labels"].tolist() == expected[1].tolist()
    assert expected.sum() == 5
    assert "labels" not in world.open()[0]


def test_labels_of_other_samples_are_refused(world, tmp_path):
    write_labels([*STEMS[:-1], "x"], [{"genres": ["Drama"]}] * 11, tmp_path)
    with pytest.raises(InputError, match="other samples"):
        world.open(labels_dir=tmp_path)


def test_items_are_as_a_lists(world):
    dataset = FeatureDataset(world.store, ["clip_image"], zscore="none")
    expected = world.rows["clip_image"][GOOD, 0]
    assert len(dataset) == 9
    for item in (0, 8, -1, -9, np.int64(4), np.int32(-2), np.uint8(3)):
        np.testing.assert_array_equal(dataset[item]["clip_image"].numpy(), expected[item])
    for item in (9, -10, 10**12, np.int64(9)):
        with pytest.raises(IndexError, match="dataset of 9"):
            dataset[item]
    assert len(list(dataset)) == 9


def test_batches_equal_items(world):
    dataset = world.open(labels_dir=world.root / "labels", views="all")
    picks = [4, 4, -1, 0, 10]
    batch, items = dataset.batch(picks), dataset.__getitems__(picks)
    for row, pick in enumerate(picks):
        single = dataset[pick]
        assert list(single) == ["clip_image", "clip_text", "index", "labels"]
        assert single.keys() == items[row].keys() == batch.keys()
        for name, value in single.items():
            assert torch.equal(value, items[row][name])
            assert torch.equal(value, batch[name][row])
    with pytest.raises(IndexError):
        dataset.batch([11])


def test_tensors_are_copies(world):
    dataset = world.open(zscore="none")
    for views in ("clean", "all", "mean"):
        batch = world.open(zscore="none", views=views).batch([0, 1])
        for value in batch.values():
            value.fill_(-5)
    close(dataset[0]["clip_image"], world.rows["clip_image"][0, 0])
    assert dataset.indices.tolist() == list(range(11))


def test_chosen_features(world):
    dataset = world.open(features=iter(["clip_text"]))
    assert dataset.features == ("clip_text",)
    assert list(dataset[0]) == ["clip_text", "index"]


# Eight workers are more than a small machine has processors for, which torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("start", "workers"), [("fork", 8), ("spawn", 2)])
def test_loader_workers_read_the_same(world, start, workers):
    dataset = world.open(views="random", seed=5)
    dataset.set_epoch(3)
    expected = list(DataLoader(dataset, batch_size=4, num_workers=0))
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=start)
    found = list(loader)
    assert [len(b["index"]) for b in found] == [4, 4, 3]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in expected[0])


def test_pickle_carries_the_path_and_not_the_rows(world):
    dataset = world.open(views="random", split="train", split_json=world.split, seed=9)
    dataset.set_epoch(4)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert (again.epoch, again.features, len(again)) == (4, dataset.features, 4)
    assert all(torch.equal(again[2][name], dataset[2][name]) for name in dataset[2])


# --- the random policy ---


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """2,000 samples of 8 views whose rows hold their own view's number."""
    path = tmp_path_factory.mktemp("many") / "store"
    views = np.tile(np.arange(8, dtype=np.float32)[None, :, None], (2000, 1, 16))
    dims = {"clip_image": 16}
    make_store(path, samples=2000, views=8, chunk=200, dims=dims, rows={"clip_image": views})
    return path


def drawn(path, *, seed=0, epoch=0, items=range(2000)):
    dataset = FeatureDataset(path, views="random", zscore="none", seed=seed)
    dataset.set_epoch(epoch)
    return dataset.batch(items)["clip_image"][:, 0].numpy().astype(int)


def test_random_views_belong_to_seed_epoch_and_sample(many):
    base = drawn(many)
    np.testing.assert_array_equal(drawn(many), base)
    np.testing.assert_array_equal(drawn(many, items=range(1999, -1, -1)), base[::-1])
    np.testing.assert_array_equal(drawn(many, items=[77]), base[[77]])


def test_random_views_are_uniform_and_independent(many):
    draws = {
        (seed, epoch): drawn(many, seed=seed, epoch=epoch) for seed in range(3) for epoch in (0, 1)
    }
    for found in draws.values():
        counts = np.bincount(found, minlength=8)
        assert len(counts) == 8
        assert ((counts - 250) ** 2 / 250).sum() < 24.3  # chi², 7 degrees: one in a thousand
    keys = list(draws)
    for i, one in enumerate(keys):
        for other in keys[:i]:  # one in eight agrees by chance: 250 ± 4 deviations
            assert abs((draws[one] == draws[other]).sum() - 250) < 60, (one, other)
    neighbours = drawn(many)
    assert abs((neighbours[1:] == neighbours[:-1]).sum() - 250) < 60


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (2**64, 0), (2**70 + 3, 2**65), (0, -1)])
def test_any_integer_seeds_the_draw(many, seed, epoch):
    assert set(drawn(many, seed=seed, epoch=epoch)) == set(range(8))


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": ["clip_text", "clip"]}, "but not 'clip'"),
        ({"views": "some"}, "found 'some'"),
        ({"views": "3"}, "found '3'"),
        ({"views": 4}, "views 0 to 3, view 4"),
        ({"views": -1}, "view -1"),
        ({"zscore": "test"}, "found 'test'"),
        ({"zscore": "train"}, "needs the split"),
        ({"bad_samples": "drop"}, "found 'drop'"),
        ({"split": "train"}, "needs split_json"),
        ({"split": "dev", "split_json": True}, "found 'dev'"),
    ],
)
def test_wrong_arguments(world, arguments, message):
    if "split_json" in arguments:
        arguments = arguments | {"split_json": world.split}
    with pytest.raises(ConfigError, match=message):
        world.open(**arguments)


def test_no_complete_store(tmp_path):
    with pytest.raises(InputError, match="no feature store"):
        FeatureDataset(tmp_path)
    make_store(tmp_path / "s", chunks=[0, 2])
    with pytest.raises(InputError, match="2 of 3 chunks"):
        FeatureDataset(tmp_path / "s")


def test_nothing_left(world, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [STEMS[3]], "dev": [], "test": []}))
    for part in ("train", "val"):
        with pytest.raises(InputError, match="No sample"):
            FeatureDataset(world.store, split=part, split_json=split)


def test_a_short_chunk_is_refused_when_opened(tmp_path):
    make_store(tmp_path / "s")
    with (tmp_path / "s/clip_text/c.1.0.0").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CorruptStoreError, match=r"clip_text/c\.1\.0\.0"):
        FeatureDataset(tmp_path / "s")
