"""Tar files: what the library WebDataset writes and reads, damage, and changes after the scan."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_iterator

from featurestore.errors import BadSampleError, ConfigError, InputError, StorageError
from producers.sources.inputs import stat_inputs
from producers.sources.kinds import scan_collection
from producers.sources.recognize import recognize
from producers.sources.scan import Inputs, require_inputs
from producers.sources.tars import index
from tests.producers.sources.kinds.kit import (
    ITEMS,
    Item,
    assert_equal,
    collection,
    picture,
    read,
    write_tar,
)

FLAT = [item for item in ITEMS if "/" not in item.id]


def written_by_webdataset(path: Path, samples: list[dict[str, Any]]) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def test_what_webdataset_writes(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"__key__": f"s{n}", "png": picture(n), "txt": f"text {n}", "cls": n % 2}
        | {"json": {"split": "train" if n else "test", "genres": ["a", f"b{n}"]}}
        for n in range(4)
    ]
    written_by_webdataset(tmp_path / "x-0000.tar", samples[:3])
    written_by_webdataset(tmp_path / "x-0001.tar", samples[3:])
    for pattern in ("x-*.tar", "x-{0000..0001}.tar"):
        found = read(collection("webdataset", tmp_path / pattern, split="split"))
        items = [Item(s["__key__"], s["png"], (s["txt"],)) for s in samples]
        assert_equal(found, items)
        assert found.scan.labels is not None
        assert found.scan.splits is not None
        assert found.scan.labels() == [0, 1, 0, 1]
        assert found.scan.splits() == ["test", "train", "train", "train"]
    genres = scan_collection(collection("webdataset", tmp_path / "x-*.tar", labels="genres"))
    assert genres.labels is not None
    assert genres.labels() == [["a", f"b{n}"] for n in range(4)]
    assert recognize(tmp_path / "x-0000.tar").kind == "webdataset"


def test_values_of_members_and_keys(tmp_path: Path) -> None:
    values = ["7", "-1", "--1", "007", '["a", "b, c"]', "", "x\n"]
    items = [Item(f"{n}", picture(n)) for n in range(len(values))]

    def more(number: int) -> dict[str, bytes]:
        document = {"score": number / 2, "flag": True} if number else {}
        return {"cls": values[number].encode(), "json": json.dumps(document).encode()}

    write_tar(tmp_path / "t.tar", items, more)
    expected: dict[str | None, list[Any]] = {
        None: [7, -1, "--1", "007", ["a", "b, c"], None, "x"],
        "score": [None, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
        "flag": [None, 1, 1, 1, 1, 1, 1],
    }
    for name, labels in expected.items():
        found = scan_collection(collection("webdataset", tmp_path / "t.tar", labels=name))
        assert found.labels is not None
        assert found.labels() == labels
    found = scan_collection(collection("webdataset", tmp_path / "t.tar", split="cls"))
    assert found.splits is not None
    with pytest.raises(InputError, match="split 'cls' is a string"):
        found.splits()


def test_the_library_reads_the_same_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", ITEMS)
    found = read(collection("webdataset", tmp_path / "t.tar"))
    assert_equal(found, ITEMS)
    with (tmp_path / "t.tar").open("rb") as file:
        library = list(group_by_keys(m | {"__url__": ""} for m in tar_file_iterator(file)))
    assert [sample["__key__"] for sample in library] == found.ids
    assert [sample.get("png", sample.get("jpg")) for sample in library] == found.images


def test_absent_inputs_and_members_that_are_not_used(tmp_path: Path) -> None:
    items = [Item("a", picture(1), ("t",)), Item("b", picture(2)), Item("c", None, ("",))]
    items.append(Item("d", None, ("u",)))
    write_tar(tmp_path / "t.tar", items)
    with tarfile.open(tmp_path / "t.tar", "a") as tar:
        for name in ("README", "x/.hidden.txt"):
            tar.addfile(tarfile.TarInfo(name))
    found = read(collection("webdataset", tmp_path / "t.tar"))
    assert found.texts == [("t",), (), (), ("u",)]
    assert found.images == [items[0].image, items[1].image, None, None]
    assert found.scan.left_out == (("README", "suffix"), ("x/.hidden.txt", "dotfile"))
    assert found.scan.places.sizes("image") == [len(picture(1)), len(picture(2)), -1, -1]


def test_members_and_keys_of_texts_in_the_named_order(tmp_path: Path) -> None:
    def more(number: int) -> dict[str, bytes]:
        document = {"caption": f"c{number}", "all": ["x", "", "y"]} if number else {}
        return {"Title.TXT": b"title\n", "json": json.dumps(document).encode()}

    write_tar(tmp_path / "t.tar", FLAT[:2], more)
    named = collection(
        "webdataset", tmp_path / "t.tar", text=("caption", "title.txt", "all"), image="png"
    )
    found = read(named)
    assert found.texts == [("title",), ("c1", "title", "x", "y")]
    assert found.images == [FLAT[0].image, None]
    texts_only = read(collection("webdataset", tmp_path / "t.tar", text=("txt",)))
    assert texts_only.scan.modalities == ("text",)


def test_a_tar_file_of_the_program_tar_with_folders_and_a_leading_dot(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_folder("./"))
        tar.addfile(_folder("./cats"))
        for name in ("./cats/ä" + "n" * 150 + ".1.png", "./dogs.d/1.png"):
            data = picture(len(name))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = read(collection("webdataset", tmp_path / "t.tar"))
    assert found.ids == ["cats/ä" + "n" * 150, "dogs.d/1"]
    assert found.images[1] == picture(len("./dogs.d/1.png"))


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


# Errors ---------------------------------------------------------------------------------------


def test_two_images_in_a_sample_and_a_key_that_occurs_twice(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", FLAT[:1], lambda _: {"webp": b"x", "seg.png": b"y"})
    with pytest.raises(ConfigError, match=r'several images: png, webp\..*\n.*image = "png"'):
        scan_collection(collection("webdataset", tmp_path / "t.tar"))
    assert read(collection("webdataset", tmp_path / "t.tar", image="seg.png")).images == [b"y"]
    for name in ("1.tar", "2.tar"):
        write_tar(tmp_path / name, FLAT[:2])
    with pytest.raises(InputError, match=r"twice: sample 0 of 1\.tar and sample 0 of 2\.tar"):
        scan_collection(collection("webdataset", tmp_path / "[12].tar"))
    write_tar(tmp_path / "t.tar", [FLAT[0], FLAT[1], FLAT[0]])
    with pytest.raises(InputError, match="'0012' occurs twice"):
        scan_collection(collection("webdataset", tmp_path / "t.tar"))
    write_tar(tmp_path / "t.tar", [FLAT[0], FLAT[0]])
    with pytest.raises(InputError, match=r"'0012\.png' occurs twice"):
        scan_collection(collection("webdataset", tmp_path / "t.tar"))


def test_samples_without_inputs_and_names_that_do_not_exist(tmp_path: Path) -> None:
    def only_json(_: int) -> dict[str, bytes]:
        return {"json": b'{"caption": "x"}'}

    write_tar(tmp_path / "t.tar", [Item("a"), Item("b")], only_json)
    with pytest.raises(InputError, match=r"(?s)'a\.json'.*1 more samples.*text = "):
        scan_collection(collection("webdataset", tmp_path / "t.tar"))
    named = read(collection("webdataset", tmp_path / "t.tar", text=("caption",)))
    assert named.texts == [("x",), ("x",)]
    write_tar(tmp_path / "t.tar", FLAT)
    for values in ({"labels": "cls"}, {"text": ("caption",)}, {"image": "webp"}, {"id": "key"}):
        with pytest.raises(ConfigError, match=r"png, |names|for tables"):
            scan_collection(collection("webdataset", tmp_path / "t.tar", **values))


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2 + 100]


def cut_after_a_member(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        third = tar.getmembers()[2]
    return data[: third.offset]


def damaged_header(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        third = tar.getmembers()[2]
    return data[: third.offset + 20] + b"\xff\xff" + data[third.offset + 22 :]


DAMAGE: list[Callable[[bytes], bytes]] = [
    truncated,
    cut_after_a_member,
    damaged_header,
    lambda data: data + data,
    lambda data: gzip.compress(data),
    lambda data: b"",
    lambda data: b"<html>" + data,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_file_is_refused_and_no_sample_is_lost_without_a_word(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "t.tar"
    write_tar(path, FLAT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"no complete, uncompressed tar file"):
        scan_collection(collection("webdataset", path))


# The index, and changes -----------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "t.tar"
    write_tar(path, FLAT)
    return path


def test_headers_are_read_once(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan_collection(collection("webdataset", shard))
    monkeypatch.setattr(index, "_read", lambda path: pytest.fail(f"{path} is read again"))
    again = scan_collection(collection("webdataset", shard))
    assert [again.places.where(s) for s in again.samples] == [
        first.places.where(s) for s in first.samples
    ]


def replaced(path: Path) -> None:
    write_tar(path, FLAT[::-1])


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    write_tar(path.with_name("other.tar"), FLAT[::-1])
    data = path.with_name("other.tar").read_bytes()[:size]
    path.write_bytes(data.ljust(size, b"\0"))
    os.utime(path, ns=(7, 7))


def cut(path: Path) -> None:
    os.truncate(path, 3000)


@pytest.mark.parametrize("change", [replaced, overwritten, cut, Path.unlink])
def test_a_tar_file_that_changes_after_the_scan_gives_no_other_bytes(
    shard: Path, change: Callable[[Path], None]
) -> None:
    found = scan_collection(collection("webdataset", shard))
    inputs = Inputs(found)
    assert inputs.image(found.samples[0]) == FLAT[0].image
    change(shard)
    for sample in found.samples:
        for method in (inputs.image, inputs.texts):
            with pytest.raises(BadSampleError, match=r"missing: .*t\.tar is gone, or has changed"):
                method(sample)
    with pytest.raises(StorageError, match="gone"):
        require_inputs(found)


def test_a_changed_tar_file_has_other_stats(shard: Path) -> None:
    before = stat_inputs(scan_collection(collection("webdataset", shard)))
    assert (stat_inputs(scan_collection(collection("webdataset", shard))) == before).all()
    write_tar(shard, FLAT, lambda _: {"cls": b"1"})
    after = stat_inputs(scan_collection(collection("webdataset", shard)))
    assert (before[:, :2] != after[:, :2]).any(1).all()
    assert (before[:, 2:] != after[:, 2:]).any(1).all()


def test_a_text_that_is_not_utf8_is_one_bad_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", FLAT[:2], lambda n: {"note": b"\xff" if n else b"x"})
    found = scan_collection(collection("webdataset", tmp_path / "t.tar", text=("note",)))
    inputs = Inputs(found)
    assert inputs.texts(found.samples[0]) is not None
    with pytest.raises(BadSampleError, match="not-utf8"):
        inputs.texts(found.samples[1])
