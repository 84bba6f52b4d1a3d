import csv
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.labels import write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.storage.store import FeatureStore
from featurestore.training.dataset import FeatureDataset
from tests.featurestore.stores import DIMS
from tests.featurestore.worlds import BAD, GOOD, SPLIT, STEMS, World


@pytest.fixture
def copy(embeddings: Path, tmp_path: Path) -> Path:
    return shutil.copytree(embeddings, tmp_path / "copy")


def edit(
    folder: Path, change: Callable[[dict[str, Any]], object], *, checksum: bool = False
) -> None:
    path = folder / f"{PREFIX}_manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    if not checksum:
        manifest.pop("crc32c", None)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("views", ["clean", 3, "all", "mean", "random", "pair"])
@pytest.mark.parametrize("zscore", ["all", "train", "none"])
def test_the_same_as_from_the_store(
    world: World, tmp_path: Path, views: int | str, zscore: str
) -> None:
    folder = world.materialize(tmp_path, zscore)
    options: dict[str, Any] = {
        "views": views,
        "zscore": zscore,
        "seed": 4,
        "split_json": world.split,
    }
    options |= {"labels_dir": world.root / "labels", "split": "train"}
    one = FeatureDataset(world.store, **options)
    other = FeatureDataset(folder, checksum=True, **options)
    assert (other.stems, other.features) == (one.stems, tuple(DIMS))
    for epoch in (0, 3):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        expected, actual = one.batch(range(len(one))), other.batch(range(len(other)))
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert actual[name].numpy().tobytes() == value.numpy().tobytes()


def test_placeholders_are_left_out(embeddings: Path) -> None:
    assert FeatureDataset(embeddings).indices.tolist() == GOOD
    everything = FeatureDataset(embeddings, bad_samples="include")
    assert everything.indices.tolist() == list(range(11))
    assert [b.index for b in everything.store.bad_inputs] == list(BAD)
    assert everything.store.bad_inputs[0].reason == "truncated"


def test_the_names_that_a_store_has(world: World, embeddings: Path) -> None:
    store, folder = FeatureStore(world.store), FeatureDataset(embeddings).store
    assert (folder.stems, folder.seed, folder.features) == (store.stems, 123, store.features)
    assert (folder.spec.samples, folder.spec.views, folder.spec.dims) == (11, 4, DIMS)
    assert folder.spec.chunk > 0


@pytest.mark.parametrize("start", ["fork"])
def test_pickles_and_loader_workers(embeddings: Path, start: str) -> None:
    dataset = FeatureDataset(embeddings, views="random", seed=1)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=start)
    actual = torch.cat([batch["clip_text"] for batch in loader])
    expected = pickle.loads(data).batch(range(9))["clip_text"]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("written", ["all", "train", "none"])
def test_another_zscore_than_the_files_have(world: World, tmp_path: Path, written: str) -> None:
    folder = world.materialize(tmp_path, written)
    for zscore in {"all", "train", "none"} - {written}:
        with pytest.raises(ConfigError, match=f"--zscore {written}") as caught:
            FeatureDataset(folder, zscore=zscore, split_json=world.split)
        assert len(str(caught.value).splitlines()) <= 4
    assert len(FeatureDataset(folder, zscore=written)) == 9  # the scale of the files needs no split


def test_files_of_the_published_scripts(world: World, copy: Path) -> None:
    """Their manifest lacks the additional keys, and their index has another order."""

    def published(manifest: dict[str, Any]) -> None:
        for key in list(manifest)[list(manifest).index("index_csv") + 1 :]:
            del manifest[key]

    edit(copy, published)
    path = copy / f"{PREFIX}_aug_index.csv"
    with path.open(newline="") as file:
        head, *rows = list(csv.reader(file))
    rows.sort(key=lambda row: (int(row[2]), int(row[1])))  # view-major
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    dataset = FeatureDataset(copy, split="train", split_json=world.split)
    assert dataset.indices.tolist() == SPLIT["train"]  # the manifest names no placeholders
    assert dataset.stems == [STEMS[i] for i in SPLIT["train"]]
    expected = world.open(split="train", split_json=world.split).batch(range(4))
    assert torch.equal(dataset.batch(range(4))["clip_text"], expected["clip_text"])
    with pytest.raises(InputError, match="no digests"):
        FeatureDataset(copy, checksum=True)


def test_augmented_labels_are_in_the_same_folder(world: World, copy: Path) -> None:
    write_augmented_labels(world.root / "labels", copy, 4)
    every = np.load(copy / f"{PREFIX}_labels.npy").reshape(11, 4, 23)
    actual = FeatureDataset(copy, views="all", labels="augmented").batch(range(9))["labels"]
    np.testing.assert_array_equal(actual.numpy(), every[GOOD])
    (copy / f"{PREFIX}_labels_manifest.json").unlink()  # an unfinished run
    own = FeatureDataset(copy, views="all", labels="augmented", labels_dir=world.root / "labels")
    np.testing.assert_array_equal(own.batch(range(9))["labels"].numpy(), every[GOOD])


def test_several_sets_of_files(world: World, copy: Path) -> None:
    materialize(FeatureStore(world.store), copy, prefix="other")
    with pytest.raises(InputError, match="prefix="):
        FeatureDataset(copy)
    assert len(FeatureDataset(copy, prefix="other")) == 9
    with pytest.raises(InputError, match=r"no third_manifest\.json"):
        FeatureDataset(copy, prefix="third")


# --- damage ---


def test_a_flipped_bit_of_the_manifest(copy: Path) -> None:
    path = copy / f"{PREFIX}_manifest.json"
    whole = path.read_bytes()
    right = FeatureDataset(copy).batch(range(9))
    for at in range(0, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(bytes(data))
        try:
            dataset = FeatureDataset(copy)
        except InputError:
            continue
        # White space, or the checksum's own key: the numbers are what they were.
        assert all(torch.equal(dataset.batch(range(9))[name], right[name]) for name in right), at


@pytest.mark.parametrize("damage", ["flip", "half", "longer", "delete", "other"])
def test_damaged_rows(copy: Path, damage: str) -> None:
    path = copy / f"{PREFIX}_clip_text.npy"
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "other":
        np.save(path, np.load(path)[:-1])
    else:
        flipped = data[:-99] + bytes([data[-99] ^ 4]) + data[-98:]
        path.write_bytes({"flip": flipped, "half": data[:4000], "longer": data + b"1234"}[damage])
    with pytest.raises(InputError, match="clip_text"):
        FeatureDataset(copy, checksum=True)
    if damage != "flip":
        with pytest.raises(InputError, match="clip_text"):
            FeatureDataset(copy)
    assert len(FeatureDataset(copy, ["clip_image"], checksum=True)) == 9


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(original_rows=12),
        lambda m: m.update(views_per_sample=0),
        lambda m: m.update(original_rows="11"),
        lambda m: m.update(dims=[1]),
        lambda m: m.update(placeholders=[{}]),
        lambda m: m.update(seed="x"),
        lambda m: m.pop("original_rows"),
    ],
)
def test_a_manifest_of_other_files(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copy, change)
    with pytest.raises(InputError):
        FeatureDataset(copy)
    edit(copy, lambda _: None, checksum=True)


def test_a_damaged_index(world: World, copy: Path) -> None:
    path = copy / f"{PREFIX}_aug_index.csv"
    whole = path.read_text()
    for text, message in (
        (whole.replace(STEMS[2], "other"), "other samples"),
        (whole[: len(whole) // 2], "of 11 samples"),
        (whole.replace("orig_idx", "original"), "is not an index"),
        (whole.replace(f"\n8,2,0,{STEMS[2]}", f"\n8,99,0,{STEMS[2]}"), "not name every sample"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            FeatureDataset(copy, split="train", split_json=world.split)
    path.unlink()
    with pytest.raises(InputError, match="Could not read"):
        FeatureDataset(copy, split="train", split_json=world.split)
    assert len(FeatureDataset(copy)) == 9  # stems are not needed


def test_labels_of_other_samples(copy: Path, tmp_path: Path) -> None:
    write_labels([*STEMS[:-1], "x"], [{"genres": ["Drama"]}] * 11, tmp_path / "labels")
    with pytest.raises(InputError, match="other samples"):
        FeatureDataset(copy, labels_dir=tmp_path / "labels")


def test_an_empty_folder_is_no_source(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no feature store"):
            FeatureDataset(path)
