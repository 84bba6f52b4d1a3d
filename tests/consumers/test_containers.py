"""One data set in six kinds of containers gives one store, and a change of a container is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import StorageError, StoreMismatchError
from featurestore.storage.store import FeatureStore
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.scan import Scan
from tests.conftest import tree_digest
from tests.producers.sources.kinds import kit
from tests.producers.sources.kinds.kit import ITEMS, collection

FEATURES = ("clip_image", "clip_text")


def build_store(
    source: CollectionConfig, store: Path, checkpoints: dict[str, str], *, resume: bool = False
) -> None:
    models = {feature: checkpoints[feature] for feature in FEATURES}
    build(
        BuildConfig(
            collection=source,
            store=store,
            models=models,
            device="cpu",
            views=2,
            producers=1,
            resume=resume,
        )
    )


def folder(path: Path) -> CollectionConfig:
    kit.write_files(path, ITEMS)
    return collection("folder", path, recursive=True)


def csv_table(path: Path) -> CollectionConfig:
    kit.write_files(path, ITEMS, texts=False)
    kit.write_csv(path / "t.csv", ITEMS)
    return collection("table", path / "t.csv")


def parquet_table(path: Path) -> CollectionConfig:
    path.mkdir()
    kit.write_parquet(path / "t.parquet", ITEMS[::-1])
    return collection("table", path / "t.parquet", order="id")


def image_folder(path: Path) -> CollectionConfig:
    kit.write_metadata(path, ITEMS)
    return collection("imagefolder", path)


def tars(path: Path) -> CollectionConfig:
    kit.write_tar(path / "0.tar", ITEMS[:3])
    kit.write_tar(path / "1.tar", ITEMS[3:])
    return collection("webdataset", path / "{0..1}.tar")


def data_set(path: Path) -> CollectionConfig:
    kit.save_dataset(path, ITEMS)
    return collection("huggingface", path)


KINDS: list[Callable[[Path], CollectionConfig]] = [
    *(folder, csv_table, parquet_table, image_folder, tars, data_set),
]


@pytest.mark.usefixtures("unsynced")
def test_every_container_of_a_data_set_gives_the_same_store(
    tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    digests = {}
    for write in KINDS:
        store = tmp_path / f"{write.__name__}-store"
        build_store(write(tmp_path / write.__name__), store, checkpoints)
        digests[write.__name__] = tree_digest(store)
    expected = digests.pop("folder")
    assert {"clip_image/c.0.0.0", "clip_text/c.0.0.0"} <= expected.keys()
    assert [name for name, digest in digests.items() if digest != expected] == []


@pytest.mark.usefixtures("unsynced")
def test_a_changed_container_is_compared_by_content_on_resume(
    tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    store = tmp_path / "store"
    source = tars(tmp_path / "tars")
    build_store(source, store, checkpoints)
    before = tree_digest(store)
    # Another member in each sample, and the same data in another kind of container: nothing new.
    kit.write_tar(tmp_path / "tars/0.tar", ITEMS[:3], lambda _: {"cls": b"1"})
    build_store(source, store, checkpoints, resume=True)
    build_store(parquet_table(tmp_path / "table"), store, checkpoints, resume=True)
    assert tree_digest(store) == before
    changed = [kit.Item(i.id, i.image, ("other",) if i is ITEMS[1] else i.texts) for i in ITEMS]
    kit.write_tar(tmp_path / "tars/0.tar", changed[:3])
    with pytest.raises(StoreMismatchError, match=r"012 in 0\.tar"):
        build_store(source, store, checkpoints, resume=True)
    assert tree_digest(store) == before


def truncate_tar(path: Path) -> None:
    os.truncate(path / "1.tar", 2000)


def replace_tar(path: Path) -> None:
    kit.write_tar(path / "1.tar", ITEMS[:3])


def truncate_arrow(path: Path) -> None:
    (file,) = path.glob("*.arrow")
    os.truncate(file, 1000)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    ("write", "change"),
    [(tars, truncate_tar), (tars, replace_tar), (data_set, truncate_arrow)],
)
def test_a_container_that_changes_after_the_scan_ends_the_build_and_gives_no_rows(
    write: Callable[[Path], CollectionConfig],
    change: Callable[[Path], None],
    tmp_path: Path,
    checkpoints: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write(tmp_path / "data")

    def scan_then_change(collection: CollectionConfig) -> Scan:
        found = scan_collection(collection)
        change(tmp_path / "data")
        return found

    monkeypatch.setattr("consumers.build.scan_collection", scan_then_change)
    with pytest.raises(StorageError, match="gone or have changed since it was scanned"):
        build_store(source, tmp_path / "store", checkpoints)
    assert 0 not in FeatureStore(tmp_path / "store").ledger
