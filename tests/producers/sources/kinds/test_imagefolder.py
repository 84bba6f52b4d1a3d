"""Class folders and folders with metadata, compared with what the library ``datasets`` reads."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import ConfigError, InputError
from producers.sources.kinds import scan_collection
from producers.sources.recognize import recognize
from tests.producers.sources.kinds.kit import (
    ITEMS,
    assert_equal,
    collection,
    picture,
    read,
    write_metadata,
)


def put(folder: Path, *names: str) -> dict[str, bytes]:
    """Writes a picture under each name; returns their bytes by id."""
    pictures = {}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[str(Path(name).with_suffix(""))] = picture(number)
        path.write_bytes(picture(number))
    return pictures


def library(folder: Path, cache: Path) -> datasets.DatasetDict:
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))
    return loaded.cast_column("image", datasets.Image(decode=False))


def test_class_folders_with_splits_are_those_of_the_library(tmp_path: Path) -> None:
    data = tmp_path / "data"
    classes = ("cats", "dogs, big", "été")
    names = [f"{s}/{c}/{n}.png" for s in ("train", "test") for c in classes for n in range(2)]
    pictures = put(data, *names)
    (data / "train/cats/note.md").write_text("x")
    found = read(recognize(data))
    assert found.scan.collection.kind == "imagefolder"
    assert found.ids == sorted(pictures)
    assert found.images == [pictures[id_] for id_ in found.ids]
    assert found.scan.modalities == ("image",)
    assert found.scan.left_out == (("train/cats/note.md", "suffix"),)
    assert found.scan.labels is not None
    assert found.scan.splits is not None
    ours = set(zip(found.ids, found.scan.splits(), found.scan.labels(), strict=True))
    theirs = set()
    for split, rows in library(data, tmp_path / "cache").items():
        labels = rows.features["label"].names
        for row in rows:
            name = Path(row["image"]["path"]).relative_to(data).with_suffix("")
            theirs.add((str(name), split, labels[row["label"]]))
    assert ours == theirs


def test_class_folders_without_splits_and_images_without_classes(tmp_path: Path) -> None:
    put(tmp_path / "a", "cats/1.jpg", "dogs/1.png")
    found = scan_collection(collection("imagefolder", tmp_path / "a"))
    assert found.labels is not None
    assert found.labels() == ["cats", "dogs"]
    assert found.splits is None
    put(tmp_path / "b", "train/1.jpg", "test/1.png")
    found = scan_collection(collection("imagefolder", tmp_path / "b"))
    assert found.labels is None
    assert found.splits is not None
    assert found.splits() == ["test", "train"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_of_each_format(tmp_path: Path, suffix: str) -> None:
    data = tmp_path / "data"
    pictures = put(data, "b.png", "sub/a.jpg", "unlisted.png")
    rows = [("b.png", "text of b", "x"), ("./sub/a.jpg", "", "y")]
    names, texts, labels = zip(*rows, strict=True)
    table = pa.table({"file_name": names, "text": texts, "label": labels})
    path = data / f"metadata.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        file = io.StringIO(newline="")
        csv.writer(file).writerows([table.column_names, *rows])
        path.write_text(file.getvalue())
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    found = read(recognize(data))
    assert found.ids == ["b", "sub/a"]
    assert found.images == [pictures["b"], pictures["sub/a"]]
    assert found.texts == [("text of b",), ()]
    assert found.scan.labels is not None
    assert found.scan.labels() == ["x", "y"]
    assert ("unlisted.png", "unlisted") in found.scan.left_out


def test_metadata_of_each_split(tmp_path: Path) -> None:
    pictures = put(tmp_path, "train/1.png", "validation/1.png")
    for split in ("train", "validation"):
        (tmp_path / split / "metadata.csv").write_text(f"file_name,caption\n1.png,{split} text\n")
    found = read(collection("imagefolder", tmp_path))
    assert found.ids == ["train/1", "validation/1"]
    assert found.images == [pictures[id_] for id_ in found.ids]
    assert found.texts == [("train text",), ("validation text",)]
    assert found.scan.splits is not None
    assert found.scan.splits() == ["train", "validation"]


def test_metadata_in_another_order_and_named_columns(tmp_path: Path) -> None:
    write_metadata(tmp_path, ITEMS)
    assert_equal(read(collection("imagefolder", tmp_path)), ITEMS)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "n,1.png", "plot": "p", "tagline": "t", "code": 7}\n'
        '{"file_name": "0012.png", "plot": "q", "tagline": "", "code": 3}\n'
    )
    named = collection("imagefolder", tmp_path, text=("tagline", "plot"), id="code")
    found = read(named)
    assert found.ids == ["3", "7"]
    assert found.texts == [("q",), ("t", "p")]
    assert found.images == [ITEMS[0].image, ITEMS[4].image]


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ("file_name,text\nno.png,x\n", InputError, ["'no.png' in row 0", "no such image"]),
        ("file_name,text\n../1.png,x\n", InputError, ["'../1.png'"]),
        ("file_name,text\n,x\n", InputError, ["row 0", "no file_name"]),
        ("file_name,text\n1.png,x\n1.png,y\n", InputError, ["'1' occurs twice: row 0 and row 1"]),
        ("name,text\n1.png,x\n", ConfigError, ["file_name", "name, text"]),
    ],
)
def test_errors_of_metadata(
    tmp_path: Path, metadata: str, error: type[Exception], words: list[str]
) -> None:
    put(tmp_path / "data", "1.png")
    (tmp_path / "data/metadata.csv").write_text(metadata)
    with pytest.raises(error) as raised:
        scan_collection(collection("imagefolder", tmp_path / "data"))
    assert [word for word in words if word not in str(raised.value)] == []


def test_errors_of_class_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No image in"):
        scan_collection(collection("imagefolder", tmp_path))
    put(tmp_path, "a/1.png", "a/1.jpg")
    with pytest.raises(InputError, match=r"'a/1' occurs twice: 'a/1\.(jpg|png)' and 'a/1\."):
        scan_collection(collection("imagefolder", tmp_path))
    with pytest.raises(InputError, match=r"no metadata file"):
        scan_collection(collection("imagefolder", tmp_path, text=("plot",)))
