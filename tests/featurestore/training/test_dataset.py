import copy
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from featurestore.errors import ConfigError, CorruptStoreError, InputError
from featurestore.imdb.labels import write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.reading import sources
from featurestore.reading.npy import map_npy
from featurestore.reading.rows import FeatureRows, store_rows
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.training.dataset import FeatureDataset
from tests.featurestore.reading.test_views import drawn as drawn_number
from tests.featurestore.stores import DIMS, commit, make_records, make_store, remake
from tests.featurestore.worlds import BAD, GOOD, SPLIT, STEMS, World

# Epoch 2 of seed 5: of each sample what ``random`` and ``pair`` draw, in plain integers.
_PAIRS = [(a, b) for a in range(4) for b in range(4) if a != b]
DRAWN = [(drawn_number(5, 2, i) % 4, _PAIRS[drawn_number(5, 2, i) % 12]) for i in range(11)]


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("views", "reference"),
    [
        ("clean", lambda rows: rows[:, 0]),
        (0, lambda rows: rows[:, 0]),
        (3, lambda rows: rows[:, 3]),
        (np.int64(2), lambda rows: rows[:, 2]),
        ("all", lambda rows: rows),
        ("mean", lambda rows: rows.astype(np.float64).mean(axis=1)),
        ("random", lambda rows: np.array([r[v] for r, (v, _) in zip(rows, DRAWN, strict=True)])),
        (
            "pair",
            lambda rows: np.array(
                [[r[a], r[b]] for r, (_, (a, b)) in zip(rows, DRAWN, strict=True)]
            ),
        ),
    ],
)
@pytest.mark.parametrize("zscore", ["all", "none"])
def test_view_policies(
    world: World,
    views: int | str | np.integer,
    reference: Callable[[np.ndarray], np.ndarray],
    zscore: str,
) -> None:
    dataset = world.open(views=views, zscore=zscore, seed=5)
    dataset.set_epoch(2)
    batch = dataset.batch(range(11))
    assert batch["index"].tolist() == list(range(11))
    for name in DIMS:
        rows = world.rows[name] if zscore == "none" else world.scaled(name)
        close(batch[name], reference(rows))
        close(dataset[5][name], reference(rows)[5])
    if zscore == "none" and views != "mean":
        assert batch["clip_text"].numpy().tobytes() == reference(world.rows["clip_text"]).tobytes()


@pytest.mark.parametrize("zscore", ["all", "train", "none"])
def test_rows_are_those_of_the_files_to_the_last_bit(
    world: World, tmp_path: Path, zscore: str
) -> None:
    materialize(FeatureStore(world.store), tmp_path, zscore=zscore, split_json=world.split)
    batch = world.open(views="all", zscore=zscore, split_json=world.split).batch(range(11))
    for name, dim in DIMS.items():
        rows = np.load(tmp_path / f"{PREFIX}_{name}.npy").reshape(11, 4, dim)
        assert batch[name].numpy().tobytes() == rows.tobytes()


@pytest.mark.parametrize("bad_samples", ["exclude", "include"])
@pytest.mark.parametrize("name", DIMS)
def test_train_zscore_uses_only_the_rows_that_are_trained_on(
    world: World, name: str, bad_samples: str
) -> None:
    """Not those of sample 3, whose poster is a placeholder: training leaves out its text too.

    All parts share one scale, independent of the samples that each keeps.
    """
    trained = FeatureDataset(world.store, split="train", split_json=world.split).indices
    assert trained.tolist() == [0, 5, 9]
    expected = world.scaled(name, trained)
    for part, indices in (("test", [2, 4]), ("train", [0, 5, 9])):
        dataset = world.open(
            zscore="train", split=part, split_json=world.split, bad_samples=bad_samples
        )
        close(dataset.batch(range(len(dataset)))[name], expected[dataset.indices, 0])
        assert set(indices) <= set(dataset.indices.tolist())


@pytest.mark.parametrize(("part", "key"), [("train", "train"), ("val", "dev"), ("test", "test")])
def test_splits(world: World, part: str, key: str) -> None:
    dataset = world.open(split=part, split_json=world.split)
    assert dataset.indices.tolist() == SPLIT[key]
    assert dataset.stems == [STEMS[i] for i in SPLIT[key]]
    items: Any = dataset
    assert [item["index"].item() for item in items] == SPLIT[key]
    left = FeatureDataset(world.store, split=part, split_json=world.split)
    assert left.indices.tolist() == [i for i in SPLIT[key] if i not in BAD]


def test_bad_samples_are_left_out_by_default(world: World) -> None:
    dataset = FeatureDataset(world.store, zscore="none")
    assert dataset.indices.tolist() == GOOD
    close(dataset.batch(range(9))["clip_image"], world.rows["clip_image"][GOOD, 0])


def test_labels(world: World) -> None:
    dataset = world.open(labels_dir=world.root / "labels", split="train", split_json=world.split)
    expected = np.load(world.root / "labels/labels_all_23.npy")[SPLIT["train"]]
    actual = dataset.batch(range(4))["labels"]
    assert actual.dtype == torch.float32
    np.testing.assert_array_equal(actual.numpy(), expected)
    assert dataset[1]["labels"].tolist() == expected[1].tolist()
    assert expected.sum() == 5
    assert "labels" not in world.open()[0]


def test_labels_of_other_samples_are_refused(world: World, tmp_path: Path) -> None:
    write_labels([*STEMS[:-1], "x"], [{"genres": ["Drama"]}] * 11, tmp_path)
    with pytest.raises(InputError, match="other samples"):
        world.open(labels_dir=tmp_path)


def test_items_are_as_a_lists(world: World) -> None:
    dataset = FeatureDataset(world.store, ["clip_image"], zscore="none")
    expected = world.rows["clip_image"][GOOD, 0]
    assert len(dataset) == 9
    for item in (0, 8, -1, -9, np.int64(4), np.int32(-2), np.uint8(3)):
        np.testing.assert_array_equal(dataset[item]["clip_image"].numpy(), expected[item])
    for item in (9, -10, 10**12, np.int64(9)):
        with pytest.raises(IndexError, match="dataset of 9"):
            dataset[item]
    items: Any = dataset
    assert len(list(items)) == 9


def test_batches_equal_items(world: World) -> None:
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


def test_a_batch_is_the_list_of_its_items(world: World) -> None:
    dataset = world.open(views="pair")
    items: Any = dataset.__getitems__([4, 0, 9])
    assert len(items) == 3
    assert [item["index"].item() for item in items] == [4, 0, 9]
    assert [item["index"].item() for item in items[1:]] == [0, 9]
    assert items[-1]["index"].item() == 9
    with pytest.raises(IndexError):
        items[3]
    whole, apart = default_collate(items), default_collate(list(items))
    assert list(whole) == list(apart) == ["clip_image", "clip_text", "index"]
    assert all(torch.equal(whole[name], apart[name]) for name in whole)
    # The batch is not split into items, which would take ten times the work of reading.
    assert whole["clip_text"] is items.stacked["clip_text"]
    kept = DataLoader(dataset, batch_size=3, collate_fn=lambda batch: [dict(i) for i in batch])
    assert [len(batch) for batch in kept] == [3, 3, 3, 2]


def test_a_batch_without_collation_is_pinned_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = []

    def pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor + 0

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned_copy)
    items = world.open().__getitems__([2, 5])
    actual = pin_memory(items)  # type: ignore[no-untyped-call]
    assert len(pinned) == 3
    assert [item["index"].item() for item in actual] == [2, 5]
    assert torch.equal(actual.stacked["clip_text"], items.stacked["clip_text"])


def test_tensors_are_copies(world: World) -> None:
    dataset = world.open(zscore="none")
    for views in ("clean", "all", "mean"):
        batch = world.open(zscore="none", views=views).batch([0, 1])
        for value in batch.values():
            value.fill_(-5)
    close(dataset[0]["clip_image"], world.rows["clip_image"][0, 0])
    assert dataset.indices.tolist() == list(range(11))


def test_chosen_features(world: World) -> None:
    dataset = world.open(features=iter(["clip_text"]))
    assert dataset.features == ("clip_text",)
    assert list(dataset[0]) == ["clip_text", "index"]


# Eight workers are more than a small machine has processors for, which torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loader_workers_read_the_same(world: World) -> None:
    dataset = world.open(views="random", seed=5)
    dataset.set_epoch(3)
    expected = list(DataLoader(dataset, batch_size=4, num_workers=0))
    loader = DataLoader(dataset, batch_size=4, num_workers=8, multiprocessing_context="fork")
    actual = list(loader)
    assert [len(b["index"]) for b in actual] == [4, 4, 3]
    for one, other in zip(actual, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in expected[0])


def test_pickle_carries_the_path_and_not_the_rows(world: World) -> None:
    dataset = world.open(views="random", split="train", split_json=world.split, seed=9)
    dataset.set_epoch(4)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert (again.epoch, again.features, len(again)) == (4, dataset.features, 4)
    assert all(torch.equal(again[2][name], dataset[2][name]) for name in dataset[2])


@pytest.mark.parametrize(("start", "views"), [("fork", "random"), ("spawn", "pair")])
def test_an_epoch_reaches_persistent_workers(world: World, start: str, views: str) -> None:
    dataset, alone = (
        world.open(views=views, zscore="train", split_json=world.split, seed=2) for _ in "ab"
    )
    options: dict[str, Any] = {
        "num_workers": 1 if start == "spawn" else 2,  # it imports torch
        "multiprocessing_context": start,
        "persistent_workers": True,
    }
    loader = DataLoader(dataset, batch_size=4, **options)
    seen = []
    for epoch in (0, 1, 7):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        batches = [{name: value.clone() for name, value in batch.items()} for batch in loader]
        expected = alone.batch(range(11))
        for name in expected:
            assert torch.equal(torch.cat([batch[name] for batch in batches]), expected[name])
        seen.append(expected["clip_text"])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_copy_has_a_separate_epoch(world: World) -> None:
    dataset = world.open(views="random")
    dataset.set_epoch(3)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert other.epoch == 3
        other.set_epoch(8)
        assert dataset.epoch == 3


def test_arguments_of_other_types(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    with pytest.raises(ConfigError, match="features is a list of names, found 'clip_text'"):
        FeatureDataset(tmp_path / "s", "clip_text")
    dataset = FeatureDataset(tmp_path / "s", views="random", seed=np.int64(3))  # type: ignore[arg-type]
    same = FeatureDataset(tmp_path / "s", views="random", seed=3)
    for epoch in (np.int64(4), np.uint8(5)):
        dataset.set_epoch(epoch)  # type: ignore[arg-type]
        same.set_epoch(int(epoch))
        assert torch.equal(dataset.batch([1, 2])["clip_text"], same.batch([1, 2])["clip_text"])


def written_split(path: Path, **parts: Iterable[int]) -> Path:
    names = {part: [f"{i:07d}" for i in indices] for part, indices in parts.items()}
    path.write_text(json.dumps(names))
    return path


def test_a_worker_keeps_the_samples_of_its_dataset_if_the_split_changes(tmp_path: Path) -> None:
    make_store(tmp_path / "s", bad={2: [BadInput(2, "image", "truncated", "")]})
    split = written_split(tmp_path / "split.json", train=range(8), dev=[8], test=[9, 10])
    dataset = FeatureDataset(tmp_path / "s", split="train", split_json=split, zscore="train")
    data = pickle.dumps(dataset)
    written_split(split, train=range(4, 11), dev=[0], test=[1])
    worker = pickle.loads(data)
    assert worker.indices.tolist() == dataset.indices.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(worker.batch([6])["clip_image"], dataset.batch([6])["clip_image"])


def test_a_pickle_of_a_store_whose_chunks_were_rebuilt_is_refused(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s")
    data = pickle.dumps(FeatureDataset(tmp_path / "s", ["clip_text"]))
    remake(tmp_path / "s", 1, rows)
    pickle.loads(data)  # the same rows
    remake(tmp_path / "s", 1, {**rows, "clip_image": rows["clip_image"] + 1})
    pickle.loads(data)  # other rows, but of a feature that it does not read
    remake(tmp_path / "s", 1, {name: values + 1 for name, values in rows.items()})
    with pytest.raises(InputError, match="have changed since"):
        pickle.loads(data)


def test_a_pickle_of_files_that_were_written_again_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    data = pickle.dumps(FeatureDataset(tmp_path / "out"))
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    pickle.loads(data)
    make_store(tmp_path / "other", seed=5)
    materialize(FeatureStore(tmp_path / "other"), tmp_path / "out")
    with pytest.raises(InputError, match="have changed since"):
        pickle.loads(data)


def test_a_pickle_of_published_files_that_were_written_again_is_refused(tmp_path: Path) -> None:
    """Their manifest has no digests."""
    make_store(tmp_path / "s")
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    path = tmp_path / "out" / f"{PREFIX}_manifest.json"
    published = json.loads(path.read_bytes())
    for key in ("sha256", "crc32c"):
        del published[key]
    path.write_text(json.dumps(published))
    data = pickle.dumps(FeatureDataset(tmp_path / "out"))
    pickle.loads(data)
    rows = tmp_path / "out" / f"{PREFIX}_clip_text.npy"
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    os.utime(rows, ns=(1, 1))
    with pytest.raises(InputError, match="have changed since"):
        pickle.loads(data)


def test_a_pickle_of_another_version_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    dataset = FeatureDataset(tmp_path / "s")
    state = dataset.__getstate__()
    del state["opened"]
    with pytest.raises(InputError, match="by another version"):
        dataset.__setstate__(state)


@pytest.mark.parametrize("partial", [False, True])
def test_rows_of_two_states_are_never_opened_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: bool
) -> None:
    """A chunk is rebuilt between the opening of the first feature and the second."""
    rows = make_store(tmp_path / "s")
    other = {name: values + 1 for name, values in rows.items()}
    honest = store_rows

    def late(*args: Any, **kwargs: Any) -> FeatureRows:
        monkeypatch.setattr(sources, "store_rows", honest)
        opened = honest(*args, **kwargs)
        remake(tmp_path / "s", 0, other)
        return opened

    monkeypatch.setattr(sources, "store_rows", late)
    with pytest.raises(InputError, match="replaced while they were being opened"):
        FeatureDataset(tmp_path / "s", zscore="none", partial=partial)
    dataset = FeatureDataset(tmp_path / "s", zscore="none", partial=partial)
    for name in dataset.features:
        assert torch.equal(dataset[0][name], torch.from_numpy(other[name][0, 0]))


def test_a_store_that_grows_while_it_is_opened_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_store(tmp_path / "s", chunks=[0])
    honest = store_rows

    def late(*args: Any, **kwargs: Any) -> FeatureRows:
        monkeypatch.setattr(sources, "store_rows", honest)
        opened = honest(*args, **kwargs)
        with StoreWriter(tmp_path / "s", take_lock(tmp_path / "s")) as writer:
            commit(writer, [1], rows, make_records(writer.spec))
        return opened

    monkeypatch.setattr(sources, "store_rows", late)
    assert len(FeatureDataset(tmp_path / "s", zscore="none", partial=True)) == 4


def test_a_pickle_of_another_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    data = pickle.dumps(FeatureDataset(tmp_path / "s"))
    shutil.rmtree(tmp_path / "s")
    make_store(tmp_path / "s", views=8)
    with pytest.raises(InputError, match="has changed since"):
        pickle.loads(data)


# --- output ---


@pytest.mark.parametrize("views", ["clean", "all", "mean", "random", "pair"])
def test_bfloat16_is_the_rounded_float32(world: World, views: str) -> None:
    narrow = world.open(views=views, dtype=torch.bfloat16, labels_dir=world.root / "labels")
    wide = world.open(views=views)
    batch = narrow.batch(range(11))
    for name in DIMS:
        assert batch[name].dtype == torch.bfloat16
        assert torch.equal(batch[name], wide.batch(range(11))[name].to(torch.bfloat16))
    assert batch["labels"].dtype == torch.float32
    assert batch["index"].dtype == torch.int64


SLICES = st.slices(20)
NUMBERS = st.lists(st.integers(-12, 12), max_size=6)


@given(NUMBERS, SLICES, st.sampled_from([list, tuple, np.array, torch.tensor]))
def test_indices_as_a_list_does_them(
    numbers: list[int], slices: slice, kind: Callable[[list[int]], Any]
) -> None:
    dataset, model = open_shared(), [i for i in range(11) if i not in BAD]
    for number in numbers:
        assert outcome(lambda: dataset[number]["index"].item()) == outcome(lambda: model[number])  # noqa: B023
    given_items = kind(numbers)
    assert outcome(lambda: dataset.batch(given_items)["index"].tolist()) == outcome(
        lambda: [model[number] for number in numbers]
    )
    assert [item["index"].item() for item in dataset[slices]] == model[slices]


SHARED: list[FeatureDataset] = []


def open_shared() -> FeatureDataset:
    return SHARED[0]


@pytest.fixture(autouse=True)
def _shared(world: World) -> None:
    if not SHARED:
        SHARED.append(FeatureDataset(world.store, ["clip_image"]))


def outcome(action: Callable[[], object]) -> object:
    try:
        return action()
    except IndexError:
        return IndexError


@pytest.mark.parametrize("items", [[0.5], ["1"], [True, False], [[1, 2]], 3, np.array([1.0])])
def test_items_must_be_a_list_of_integers(world: World, items: Any) -> None:
    with pytest.raises(TypeError, match="integers"):
        world.open().batch(items)


@pytest.mark.parametrize("item", [1.0, "1", None, [1]])
def test_an_item_must_be_an_integer(world: World, item: Any) -> None:
    with pytest.raises(TypeError):
        world.open()[item]


def test_a_pickle_brings_the_scale_of_the_training_split(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every spawned worker would read the whole split again."""
    split = {"zscore": "train", "split": "test", "split_json": world.split}
    dataset = world.open(**split)
    data = pickle.dumps(dataset)
    monkeypatch.setattr(FeatureStore, "read_chunk", None)
    again = pickle.loads(data)
    for name, rows in dataset.batch([1, 0]).items():
        assert torch.equal(again.batch([1, 0])[name], rows)
    with pytest.raises(TypeError):
        world.open(**split)


# --- labels of views ---


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("views", ["clean", 2, "all", "mean", "random", "pair"])
def test_augmented_labels_fit_the_views(
    world: World, tmp_path: Path, views: int | str, written: bool
) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(world.root / "labels", folder)
    write_augmented_labels(folder, tmp_path, 4)
    every = np.load(tmp_path / f"{PREFIX}_labels.npy").reshape(11, 4, 23)
    if written:  # else computed, from the store's seed
        write_augmented_labels(folder, folder, 4)
    dataset = world.open(views=views, labels="augmented", labels_dir=folder, seed=5)
    dataset.set_epoch(2)
    expected = {
        "clean": every[:, 0],
        2: every[:, 2],
        "all": every,
        "mean": every.mean(axis=1),
        "random": np.array([every[i, v] for i, (v, _) in enumerate(DRAWN)]),
        "pair": np.array([[every[i, a], every[i, b]] for i, (_, (a, b)) in enumerate(DRAWN)]),
    }[views]
    for _ in range(2):  # the second time from the memory of the first
        actual = dataset.batch(range(11))["labels"]
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(dataset[4]["labels"].numpy(), actual[4].numpy())
        actual.fill_(9)  # a copy


def test_base_labels_do_not_depend_on_the_views(world: World) -> None:
    clean = world.open(labels_dir=world.root / "labels").batch(range(11))["labels"]
    for views in ("all", "pair", "mean"):
        dataset = world.open(labels_dir=world.root / "labels", views=views)
        assert torch.equal(dataset.batch(range(11))["labels"], clean)


def test_augmented_labels_of_other_views_are_refused(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(world.root / "labels", folder)
    write_augmented_labels(folder, folder, 5)
    with pytest.raises(InputError, match="11 samples x 5 views"):
        world.open(labels="augmented", labels_dir=folder)
    with pytest.raises(ConfigError, match="needs labels_dir"):
        world.open(labels="augmented")


@pytest.mark.parametrize("published", [False, True])
def test_augmented_labels_of_other_samples_are_refused(
    world: World, tmp_path: Path, published: bool
) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(world.root / "labels", folder)
    write_augmented_labels(folder, folder, 4)
    if published:  # by scripts that wrote no hash
        manifest = folder / f"{PREFIX}_labels_manifest.json"
        facts = json.loads(manifest.read_bytes())
        for key in ("seed", "stems_sha256", "source_sha256", "sha256", "crc32c"):
            del facts[key]
        manifest.write_text(json.dumps(facts, indent=2))
    world.open(labels="augmented", labels_dir=folder)
    stems = (folder / "ids_all.txt").read_text().split("\n")
    stems[3], stems[4] = stems[4], stems[3]
    write_labels(stems, [{"genres": ["Drama"]}] * 11, folder)
    if not published:
        write_augmented_labels(folder, folder, 4)
    with pytest.raises(InputError, match="other samples"):
        world.open(labels="augmented", labels_dir=folder)


@pytest.fixture
def labels(world: World, tmp_path: Path) -> Path:
    """A copy of the labels that may be changed."""
    return Path(shutil.copytree(world.root / "labels", tmp_path / "labels"))


def test_augmented_labels_of_another_seed_are_refused(world: World, labels: Path) -> None:
    write_augmented_labels(labels, labels, 4, seed=7)
    with pytest.raises(InputError) as caught:
        world.open(labels="augmented", labels_dir=labels)
    message = str(caught.value)
    assert "of another seed" in message
    assert "expected 123, found 7" in message
    assert f"labels --augment --embeddings-dir {labels} --seed 123" in message
    assert len(message.splitlines()) <= 4


@pytest.mark.parametrize("place", ["labels_dir", "beside", "source"])
def test_labels_that_changed_since_they_were_augmented_are_refused(
    world: World, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The clean labels are in ``labels_dir``, in the same folder, or where the manifest says."""
    monkeypatch.chdir(tmp_path)
    folder = labels if place == "beside" else world.materialize(tmp_path / "embeddings")
    write_augmented_labels(Path("labels"), folder, 4)
    source = world.store if place == "beside" else folder
    given: dict[str, Any] = {} if place == "source" else {"labels_dir": labels}
    FeatureDataset(source, labels="augmented", **given)
    write_labels(STEMS, [{"genres": ["Western"]}] * 11, labels)
    with pytest.raises(InputError) as caught:
        FeatureDataset(source, labels="augmented", **given)
    message = str(caught.value)
    assert "were made from other labels than those of" in message
    assert hashlib.sha256((labels / "labels_all_23.npy").read_bytes()).hexdigest() in message
    assert f"labels --augment --embeddings-dir {folder}" in message
    assert len(message.splitlines()) <= 4
    write_augmented_labels(Path("labels"), folder, 4)
    FeatureDataset(source, labels="augmented", **given)


def test_labels_of_another_data_set_at_the_same_path_are_not_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.materialize(tmp_path / "embeddings")
    shutil.copytree(world.root / "labels", tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    write_augmented_labels(Path("labels"), folder, 4)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_labels(["a", "b"], [{"genres": ["Western"]}] * 2, Path("labels"))
    FeatureDataset(folder, labels="augmented")


def test_a_flip_in_augmented_labels_is_found_with_checksum(world: World, labels: Path) -> None:
    write_augmented_labels(labels, labels, 4)
    path = labels / f"{PREFIX}_labels.npy"
    asked = {"labels": "augmented", "labels_dir": labels, "checksum": True}
    world.open(**asked)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"_labels\.npy is not what was written: expected SHA-256"):
        world.open(**asked)
    manifest = labels / f"{PREFIX}_labels_manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 123', '"seed": 122'))
    with pytest.raises(InputError, match="checksum does not match"):
        world.open(labels="augmented", labels_dir=labels)


def test_augmented_labels_are_mapped_and_not_read(
    world: World, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size they are 167 MB: opening them reads their manifest and the clean labels."""
    write_augmented_labels(labels, labels, 4)
    mapped = []

    def note(path: Path) -> np.ndarray:
        mapped.append(map_npy(path))
        return mapped[-1]

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("featurestore.imdb.view_labels.map_npy", note)
    monkeypatch.setattr("featurestore.imdb.view_labels.file_sha256", never)
    dataset = world.open(labels="augmented", labels_dir=labels)
    assert dataset.batch([1])["labels"].shape == (1, 23)
    [rows] = mapped
    labels_of: Any = dataset._labels
    assert np.shares_memory(rows, labels_of._rows)


def test_augmented_labels_of_other_kinds_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="found 'noisy'"):
        world.open(labels="noisy")


# --- a store that grows ---


def test_a_growing_store_is_read_as_far_as_it_is_committed(world: World, tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", stems=STEMS, bad=BAD, chunks=[0, 2])
    there = [0, 1, 2, 3, 8, 9, 10]
    growing: dict[str, Any] = {"partial": True, "bad_samples": "include"}
    raw = FeatureDataset(tmp_path / "s", zscore="none", views="all", **growing)
    assert raw.indices.tolist() == there
    assert raw.batch(range(7))["clip_text"].numpy().tobytes() == rows["clip_text"][there].tobytes()
    scaled = FeatureDataset(tmp_path / "s", views="all", **growing)
    wide = rows["clip_text"][there].reshape(-1, 128).astype(np.float64)
    expected = (rows["clip_text"][there] - wide.mean(0)) / (wide.std(0) + 1e-6)
    np.testing.assert_allclose(scaled.batch(range(7))["clip_text"], expected, atol=1e-5)
    train = FeatureDataset(
        tmp_path / "s", split="train", split_json=world.split, zscore="train", **growing
    )
    assert train.indices.tolist() == [0, 3, 9]  # 5 is not there yet
    wide = rows["clip_text"][[0, 9]].reshape(-1, 128).astype(np.float64)  # 3 has a placeholder
    expected = (rows["clip_text"][[0, 3, 9], 0] - wide.mean(0)) / (wide.std(0) + 1e-6)
    np.testing.assert_allclose(train.batch(range(3))["clip_text"], expected, atol=1e-5)
    assert len(FeatureDataset(tmp_path / "s", partial=True)) == 6
    with pytest.raises(InputError, match="not committed yet"):
        raw._rows["clip_text"].take(np.array([4]), 0)


def test_a_dataset_of_a_growing_store_does_not_change(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", chunks=[0])
    dataset = FeatureDataset(tmp_path / "s", partial=True)
    before = dataset.batch(range(4))
    data = pickle.dumps(dataset)
    with StoreWriter(tmp_path / "s", take_lock(tmp_path / "s")) as writer:
        commit(writer, [1, 2], rows, make_records(writer.spec))
        writer.finish()
    for again in (dataset, pickle.loads(data)):  # the same samples on the same scale
        assert len(again) == 4
        assert all(torch.equal(again.batch(range(4))[name], before[name]) for name in before)
    assert len(FeatureDataset(tmp_path / "s", partial=True)) == 11
    whole = FeatureDataset(tmp_path / "s", partial=True).batch(range(11))
    assert torch.equal(
        whole["clip_text"], FeatureDataset(tmp_path / "s").batch(range(11))["clip_text"]
    )


def test_nothing_is_committed_yet(world: World, tmp_path: Path) -> None:
    make_store(tmp_path / "s", stems=STEMS, chunks=[])
    with pytest.raises(InputError, match="Nothing of"):
        FeatureDataset(tmp_path / "s", partial=True)
    make_store(tmp_path / "t", stems=STEMS, chunks=[1])
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": STEMS[:2], "dev": STEMS[4:6], "test": []}))
    for zscore, message in (("none", "No sample"), ("train", "No sample|No training sample")):
        with pytest.raises(InputError, match=message):
            FeatureDataset(
                tmp_path / "t", partial=True, split="train", split_json=split, zscore=zscore
            )
    with pytest.raises(InputError, match="No training sample"):
        FeatureDataset(tmp_path / "t", partial=True, split="val", split_json=split, zscore="train")


def test_more_chunks_than_descriptors(tmp_path: Path) -> None:
    import resource  # Windows has no such module, where other tests of this file run too

    dims = {"clip_image": 1024, "clip_text": 1024}
    rows = make_store(tmp_path / "s", samples=40, views=1, chunk=1, dims=dims)
    before = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, hard))
    try:
        dataset = FeatureDataset(tmp_path / "s", zscore="none")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(dataset.batch(range(40))["clip_text"], rows["clip_text"][:, 0])


# --- the random policy ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 samples of 8 views whose rows hold their own view's number."""
    path = tmp_path_factory.mktemp("many") / "store"
    views = np.tile(np.arange(8, dtype=np.float32)[None, :, None], (2000, 1, 16))
    dims = {"clip_image": 16}
    make_store(path, samples=2000, views=8, chunk=200, dims=dims, rows={"clip_image": views})
    return path


def drawn(
    path: Path, *, seed: int = 0, epoch: int = 0, items: Sequence[int] = range(2000)
) -> np.ndarray:
    dataset = FeatureDataset(path, views="random", zscore="none", seed=seed)
    dataset.set_epoch(epoch)
    return dataset.batch(items)["clip_image"][:, 0].numpy().astype(int)


def test_random_views_belong_to_seed_epoch_and_sample(many: Path) -> None:
    base = drawn(many)
    np.testing.assert_array_equal(drawn(many), base)
    np.testing.assert_array_equal(drawn(many, items=range(1999, -1, -1)), base[::-1])
    np.testing.assert_array_equal(drawn(many, items=[77]), base[[77]])


def test_random_views_are_uniform_and_independent(many: Path) -> None:
    draws = {
        (seed, epoch): drawn(many, seed=seed, epoch=epoch) for seed in range(3) for epoch in (0, 1)
    }
    for actual in draws.values():
        counts = np.bincount(actual, minlength=8)
        assert len(counts) == 8
        assert ((counts - 250) ** 2 / 250).sum() < 24.3  # chi², 7 degrees: one in a thousand
    keys = list(draws)
    for i, one in enumerate(keys):
        for other in keys[:i]:  # one in eight agrees by chance: 250 ± 4 deviations
            assert abs((draws[one] == draws[other]).sum() - 250) < 60, (one, other)
    neighbours = drawn(many)
    assert abs((neighbours[1:] == neighbours[:-1]).sum() - 250) < 60


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (2**64, 0), (2**70 + 3, 2**65), (0, -1)])
def test_any_integer_seeds_the_draw(many: Path, seed: int, epoch: int) -> None:
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
        ({"dtype": torch.float16}, "found torch.float16"),
        ({"advice": "fast"}, "found 'fast'"),
        ({"split": "train"}, "needs split_json"),
        ({"split": "dev", "split_json": True}, "found 'dev'"),
    ],
)
def test_wrong_arguments(world: World, arguments: dict[str, Any], message: str) -> None:
    if "split_json" in arguments:
        arguments = arguments | {"split_json": world.split}
    with pytest.raises(ConfigError, match=message):
        world.open(**arguments)


def test_no_complete_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feature store"):
        FeatureDataset(tmp_path)
    make_store(tmp_path / "s", chunks=[0, 2])
    with pytest.raises(InputError, match="2 of 3 chunks"):
        FeatureDataset(tmp_path / "s")


def test_a_split_without_samples_is_refused(world: World, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [STEMS[3]], "dev": [], "test": []}))
    for part in ("train", "val"):
        with pytest.raises(InputError, match="No sample"):
            FeatureDataset(world.store, split=part, split_json=split)


def test_a_training_split_of_placeholders_gives_no_scale(world: World, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [STEMS[3]], "dev": [STEMS[0]], "test": []}))
    with pytest.raises(InputError, match="Every sample of the training split has a placeholder"):
        FeatureDataset(world.store, split="val", split_json=split, zscore="train")


def test_a_short_chunk_is_refused_when_opened(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    with (tmp_path / "s/clip_text/c.1.0.0").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CorruptStoreError, match=r"clip_text/c\.1\.0\.0"):
        FeatureDataset(tmp_path / "s")
