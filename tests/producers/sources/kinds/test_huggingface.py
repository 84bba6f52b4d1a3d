"""Data sets saved to disk, and loaded by ``datasets``: the same rows as the library gives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import datasets
import pytest

from featurestore.errors import BadSampleError, ConfigError, InputError
from producers.sources.kinds import scan_collection
from producers.sources.recognize import recognize
from producers.sources.scan import Inputs
from tests.producers.sources.kinds.kit import (
    ITEMS,
    Item,
    assert_equal,
    collection,
    picture,
    read,
    save_dataset,
)

GENRES = datasets.ClassLabel(names=["drama, old", "sci-fi", '"war"'])


def test_a_saved_data_set(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", ITEMS)
    assert recognize(tmp_path / "saved").kind == "huggingface"
    found = read(collection("huggingface", tmp_path / "saved"))
    assert_equal(found, ITEMS)
    assert found.scan.splits is None
    assert found.scan.places.sizes("image") == [len(item.image or b"") for item in ITEMS]


def test_several_files_and_a_selection_of_rows(tmp_path: Path) -> None:
    save_dataset(tmp_path / "all", ITEMS)
    selected = datasets.load_from_disk(tmp_path / "all").select([4, 0, 2])
    selected.save_to_disk(tmp_path / "saved", num_shards=2)
    found = read(collection("huggingface", tmp_path / "saved"))
    assert_equal(found, [ITEMS[4], ITEMS[0], ITEMS[2]])
    assert found.scan.places.names(found.scan.samples[2])[0].startswith("row 0 of data-00001")


def test_splits_in_their_order_and_chosen(tmp_path: Path) -> None:
    for name, items in (("a", ITEMS[:2]), ("b", ITEMS[2:3]), ("c", ITEMS[3:])):
        save_dataset(tmp_path / name, items)
    parts = {n: datasets.load_from_disk(tmp_path / f) for n, f in (("test", "a"), ("train", "b"))}
    parts["extra"] = datasets.load_from_disk(tmp_path / "c")
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    found = read(recognize(tmp_path / "saved"))
    assert_equal(found, ITEMS)
    assert found.scan.splits is not None
    assert found.scan.splits() == ["test"] * 2 + ["train"] + ["extra"] * 3
    chosen = read(collection("huggingface", tmp_path / "saved", splits=("train", "test")))
    assert_equal(chosen, [ITEMS[2], *ITEMS[:2]])
    with pytest.raises(ConfigError, match=r"no split 'valid'; its splits: test, train, extra"):
        scan_collection(collection("huggingface", tmp_path / "saved", splits=("valid",)))
    with pytest.raises(ConfigError, match="one saved split"):
        scan_collection(collection("huggingface", tmp_path / "a", splits=("train",)))


def test_labels_have_the_names_of_their_classes(tmp_path: Path) -> None:
    save_dataset(tmp_path / "one", ITEMS, label=(GENRES, [0, 1, 2, 0, -1, None]))
    found = scan_collection(collection("huggingface", tmp_path / "one"))
    assert found.labels is not None
    assert found.labels() == ["drama, old", "sci-fi", '"war"', "drama, old", None, None]
    assert found.label_names == ("drama, old", "sci-fi", '"war"')
    lists = [[0, 2], [], [1], None, [0], [0]]
    save_dataset(tmp_path / "many", ITEMS, labels=(datasets.Sequence(GENRES), lists))
    found = scan_collection(collection("huggingface", tmp_path / "many"))
    assert found.labels is not None
    assert found.labels()[:3] == [["drama, old", '"war"'], [], ["sci-fi"]]
    assert found.label_names == ("drama, old", "sci-fi", '"war"')


def test_images_of_other_names_lists_of_texts_and_no_ids(tmp_path: Path) -> None:
    features = datasets.Features(
        poster=datasets.Image(), captions=datasets.List(datasets.Value("string"))
    )
    (tmp_path / "1.png").write_bytes(picture(1))
    columns = {
        "poster": [str(tmp_path / "1.png"), {"bytes": picture(2), "path": "http://x.org/2.png"}],
        "captions": [["a", "", "b"], []],
    }
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    found = read(collection("huggingface", tmp_path / "saved", image="poster", text=("captions",)))
    assert found.ids == ["00000000", "00000001"]
    assert found.images == [picture(1), picture(2)]
    assert found.texts == [("a", "b"), ()]
    assert read(collection("huggingface", tmp_path / "saved")).images == found.images


def test_what_load_dataset_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, items in (("train", ITEMS[:4]), ("test", ITEMS[4:])):
        save_dataset(tmp_path / split, items)
        loaded = datasets.load_from_disk(tmp_path / split)
        loaded.to_parquet(tmp_path / "repository" / "data" / f"{split}-00000.parquet")
    found = read(collection("huggingface", tmp_path / "repository"))
    assert_equal(found, ITEMS)
    assert found.scan.splits is not None
    assert found.scan.splits() == ["train"] * 4 + ["test"] * 2
    with pytest.raises(InputError, match=r"(?s)cannot be loaded: .*needs the network once"):
        scan_collection(collection("huggingface", tmp_path / "repository", config="other"))


def test_without_the_network_or_the_library_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dataset(tmp_path / "saved", ITEMS)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"(?s)owner/none cannot be loaded: .*network once"):
        scan_collection(collection("huggingface", "owner/none"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'manyviews\[sources\]'"):
        scan_collection(collection("huggingface", "owner/none"))
    # A saved data set is read without it.
    assert_equal(read(collection("huggingface", tmp_path / "saved")), ITEMS)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    save_dataset(tmp_path / "saved", ITEMS)
    (path,) = (tmp_path / "saved").glob("*.arrow")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match=r"damaged"):
        scan_collection(collection("huggingface", tmp_path / "saved"))


def test_a_file_that_changes_after_the_scan_gives_no_other_rows(tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", ITEMS)
    found = scan_collection(collection("huggingface", tmp_path / "saved"))
    early = Inputs(found)
    assert early.image(found.samples[0]) == ITEMS[0].image
    (path,) = (tmp_path / "saved").glob("*.arrow")
    os.truncate(path, 100)
    for inputs in (early, Inputs(found)):
        with pytest.raises(BadSampleError, match="missing"):
            inputs.image(found.samples[0])
    assert found.places.gone()


def test_rows_without_inputs_and_ids_that_occur_twice(tmp_path: Path) -> None:
    save_dataset(tmp_path / "empty", [ITEMS[0], Item("x", None, ("",))])
    with pytest.raises(InputError, match="row 1 has neither"):
        scan_collection(collection("huggingface", tmp_path / "empty"))
    save_dataset(tmp_path / "twice", [ITEMS[0], ITEMS[0]])
    with pytest.raises(InputError, match="'0012' occurs twice: row 0 and row 1"):
        scan_collection(collection("huggingface", tmp_path / "twice"))
