"""Label files of any collection, and what a data set and a datamodule read from them."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.datamodule import make_datamodule, make_datamodule_clip_aug70
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.labels import write_augmented_labels, write_labels
from featurestore.labels.encode import encode_labels
from featurestore.labels.files import SplitOf, read_label_set, write_label_set
from featurestore.labels.record import verify_record
from featurestore.labels.splitting import named_parts
from featurestore.records import BadInput
from featurestore.training.dataset import FeatureDataset
from featurestore.training.resident import ResidentFeatures
from tests.featurestore.stores import make_store
from tests.featurestore.worlds import domain_data

IDS = [f'train/猫 {i}, "x"' for i in range(10)]
PARTS = ["train"] * 5 + ["val"] * 2 + ["test"] * 2 + [None]
DIMS = {"clip_image": 8, "mine": 4}
VALUES: dict[str, list[Any]] = {
    "multi-label": [["a, b", "🐈"], ["🐈"], None, [], *[["a, b"]] * 6],
    "class": ["a, b", "🐈", None, *["🐈", "x"] * 3, "x"],
    "value": [0.5, 1.5, None, *range(7)],
}
TARGETS: dict[str, Any] = {
    "multi-label": [[1, 1], [0, 1], [np.nan, np.nan], [0, 0], *[[1, 0]] * 6],
    "class": [0, 2, -1, 2, 1, 2, 1, 2, 1, 1],
    "value": [0.5, 1.5, np.nan, *range(7)],
}
KINDS = list(VALUES)


def write(folder: Path, kind: str, *, split: bool = True, ids: list[str] = IDS) -> Path:
    labels = encode_labels(VALUES[kind], str)
    parts = SplitOf(named_parts(PARTS, str), {"from": "collection"}) if split else None
    write_label_set(folder, ids, labels, parts)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "store"
    bad = {1: [BadInput(1, "image", "truncated", "")]}
    make_store(path, stems=IDS, dims=DIMS, views=3, chunk=0, bad=bad)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_plain(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    rows = np.load(tmp_path / "labels.npy")
    assert rows.dtype == np.float32
    assert np.isnan(rows[2]).all()
    assert (tmp_path / "ids.txt").read_text("utf-8").splitlines() == IDS
    names = json.loads((tmp_path / "class_names.json").read_text("utf-8"))
    assert len(names) == rows.shape[1]
    split = json.loads((tmp_path / "split.json").read_text())
    assert split == {"train": IDS[:5], "dev": IDS[5:7], "test": IDS[7:9]}
    record = json.loads((tmp_path / "labels.digests.json").read_text())
    assert (record["kind"], record["samples"], record["unlabelled"]) == (kind, 10, 1)
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert set(record["sha256"]) == {"labels.npy", "ids.txt", "class_names.json", "split.json"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, kind)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_yields_what_a_loss_takes(tmp_path: Path, store: Path, kind: str) -> None:
    write(tmp_path, kind)
    dataset = FeatureDataset(store, labels_dir=tmp_path, bad_samples="include")
    for opened in (dataset, pickle.loads(pickle.dumps(dataset))):
        labels = opened.batch(range(10))["labels"]
        assert labels.dtype == (torch.int64 if kind == "class" else torch.float32)
        np.testing.assert_array_equal(labels.numpy(), TARGETS[kind])
        item = opened[4]["labels"]
        assert item.shape == labels.shape[1:]
        np.testing.assert_array_equal(item.numpy(), np.asarray(TARGETS[kind][4]))
    resident = ResidentFeatures(dataset, "cpu")
    np.testing.assert_array_equal(resident.batch(torch.arange(10))["labels"].numpy(), TARGETS[kind])
    # The split that was written is read like the published one.
    train = FeatureDataset(
        store, labels_dir=tmp_path, split="train", split_json=tmp_path / "split.json"
    )
    assert train.indices.tolist() == [0, 2, 3, 4]
    loader = torch.utils.data.DataLoader(train, batch_size=4)
    np.testing.assert_array_equal(
        next(iter(loader))["labels"].numpy(), np.asarray(TARGETS[kind])[[0, 2, 3, 4]]
    )


def test_labels_of_other_samples_are_refused(tmp_path: Path, store: Path) -> None:
    write(tmp_path, "class", ids=[*IDS[:4], "other", *IDS[5:]])
    with pytest.raises(InputError, match=r"ids\.txt is for other samples: row 4 is 'other'"):
        FeatureDataset(store, labels_dir=tmp_path)


@pytest.mark.parametrize("name", ["labels.npy", "ids.txt", "class_names.json"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "class")
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{name} is (not what `labels` wrote|for other)"):
        read_label_set(tmp_path, IDS)
    assert [finding.file for finding in verify_record(tmp_path / "labels.digests.json")] == [name]


def test_the_record_alone_states_the_kind(tmp_path: Path) -> None:
    write(tmp_path, "class")
    (tmp_path / "labels.digests.json").unlink()
    with pytest.raises(InputError, match=r"labels\.digests\.json .* it is missing"):
        read_label_set(tmp_path, IDS)


def test_two_sets_of_labels_in_one_folder_are_refused(tmp_path: Path, store: Path) -> None:
    write(tmp_path, "class")
    write_labels(IDS, [{"genres": ["Drama"]}] * 10, tmp_path)
    with pytest.raises(InputError, match="Move one set to another folder"):
        FeatureDataset(store, labels_dir=tmp_path)


def test_an_old_split_is_removed_and_an_unknown_one_kept(tmp_path: Path) -> None:
    write(tmp_path, "class")
    write(tmp_path, "class", split=False)
    assert not (tmp_path / "split.json").exists()
    (tmp_path / "split.json").write_text("{}")
    with pytest.raises(ConfigError, match="`labels` did not write it"):
        write(tmp_path, "class")
    write(tmp_path, "class", split=False)
    assert (tmp_path / "split.json").read_text() == "{}"


def test_noisy_labels_of_several_classes(tmp_path: Path, store: Path) -> None:
    """The noise of each view, by the published rule with NumPy, from labels of any vocabulary."""
    write(tmp_path / "labels", "multi-label")
    write_augmented_labels(tmp_path / "labels", tmp_path / "labels", 3, "mm_imdb1_globals_aug70")
    clean = np.load(tmp_path / "labels/labels.npy")
    expected = np.repeat(clean[:, None], 3, axis=1)
    for i in range(10):
        for v in (1, 2):
            digest = hashlib.sha256(f"123:{i}:{v}:labels".encode()).hexdigest()
            noise = np.random.default_rng(int(digest[:8], 16)).normal(0, 0.1, 2)
            noisy = clean[i] + np.clip(noise.astype(np.float32), -0.2, 0.2)
            expected[i, v] = np.clip(noisy, 0, 1)
    options: dict[str, Any] = {"views": "all", "labels": "augmented", "bad_samples": "include"}
    written = FeatureDataset(store, labels_dir=tmp_path / "labels", **options)
    np.testing.assert_array_equal(written.batch(range(10))["labels"].numpy(), expected)
    write(tmp_path / "fresh", "multi-label")
    computed = FeatureDataset(store, labels_dir=tmp_path / "fresh", **options)
    np.testing.assert_array_equal(computed.batch(range(10))["labels"].numpy(), expected)


@pytest.mark.parametrize("kind", ["class", "value"])
def test_other_kinds_have_no_noisy_labels(tmp_path: Path, store: Path, kind: str) -> None:
    write(tmp_path, kind)
    for attempt in (
        lambda: write_augmented_labels(tmp_path, tmp_path, 3),
        lambda: FeatureDataset(store, labels_dir=tmp_path, labels="augmented"),
    ):
        with pytest.raises(ConfigError, match="Noisy labels are multi-label"):
            attempt()
    assert not list(tmp_path.glob("*_labels.npy"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_datamodule_of_any_features_and_labels(tmp_path: Path, store: Path, kind: str) -> None:
    import zarr

    write(tmp_path, kind)
    module = make_datamodule(
        store, ["clip_image", "mine"], labels_dir=tmp_path, batch_size=3, num_workers=0
    )
    keys = {
        frozenset(key)
        for key in (
            *(("clip_image",), ("mine",), ("labels",), ("clip_image", "mine")),
            *(("clip_image", "labels"), ("mine", "labels"), ("clip_image", "mine", "labels")),
        )
    }
    # Without sample 1, whose image is bad; those with labels also without 2, which has none.
    samples = {"train": [0, 2, 3, 4], "val": [5, 6], "test": [7, 8]}
    group = zarr.open_group(store, mode="r")
    rows = np.load(tmp_path / "labels.npy")
    for part, chosen in samples.items():
        datasets = getattr(module, f"{part}_datasets")
        assert set(datasets) == keys
        known = [i for i in chosen if i != 2]
        for key, dataset in datasets.items():
            used = known if "labels" in key else chosen
            found = domain_data(dataset)
            for name in key - {"labels"}:
                array = group[name]
                assert isinstance(array, zarr.Array)
                cube = np.asarray(array[:])
                flat = cube.reshape(-1, cube.shape[2]).astype(np.float64)
                mu, sigma = flat.mean(0), flat.std(0)
                np.testing.assert_allclose(
                    found[name].tensor().numpy(), (cube[used, 0] - mu) / sigma, atol=2e-4
                )
            if "labels" in key:
                np.testing.assert_array_equal(found["labels"].tensor().numpy(), rows[used])
    batch = module.get_samples("test", 2)[frozenset(("clip_image", "mine", "labels"))]
    assert {name: tuple(x.shape) for name, x in batch.items()} == {
        "clip_image": (2, 8),
        "mine": (2, 4),
        "labels": (2, rows.shape[1]),
    }


def test_a_datamodule_of_all_views_repeats_labels(tmp_path: Path, store: Path) -> None:
    write(tmp_path, "class")
    module = make_datamodule(
        store, ["mine"], labels_dir=tmp_path, view_mode="all", normalize="train_split"
    )
    found = domain_data(module.train_datasets[frozenset(("mine", "labels"))])
    rows = np.load(tmp_path / "labels.npy")[[0, 3, 4]]
    np.testing.assert_array_equal(found["labels"].tensor().numpy(), rows.repeat(3, axis=0))
    whole = domain_data(module.train_datasets[frozenset(("mine",))])["mine"].tensor()
    np.testing.assert_allclose(whole.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std(0), 1, atol=1e-5)


def test_what_a_datamodule_refuses(tmp_path: Path, store: Path) -> None:
    write(tmp_path / "labels", "class", split=False)
    labels = tmp_path / "labels"
    with pytest.raises(ConfigError, match="There is no split"):
        make_datamodule(store, ["mine"], labels_dir=labels)
    with pytest.raises(ConfigError, match="but not 'other'"):
        make_datamodule(store, ["other"], split_json=tmp_path / "split.json")
    with pytest.raises(ConfigError, match="once"):
        make_datamodule(store, ["mine", "mine"], split_json=tmp_path / "split.json")
    with pytest.raises(ConfigError, match="include_labels needs labels_dir"):
        make_datamodule(store, ["mine"], split_json=tmp_path / "s", include_labels=True)
    with pytest.raises(ConfigError, match="name the store first"):
        make_datamodule(None, ["mine"])
    with pytest.raises(ConfigError, match=r"make_datamodule\(store, features\)"):
        make_datamodule(store, split_json=tmp_path / "split.json")
    with pytest.raises(TypeError, match="unexpected"):
        make_datamodule(store, ["mine"], labels_dir=labels, colour=1)


def test_the_papers_factories_refuse_other_labels(tmp_path: Path, store: Path) -> None:
    write(tmp_path, "multi-label")
    shutil.copy(tmp_path / "split.json", tmp_path / "copy.json")
    with pytest.raises(InputError) as caught:
        make_datamodule_clip_aug70(
            embeddings=store, data_root=tmp_path, labels_dir=tmp_path, include_labels=True
        )
    message = str(caught.value)
    assert "labels_all_23.npy only" in message
    assert "make_datamodule(store, features, labels_dir=, split_json=)" in message
