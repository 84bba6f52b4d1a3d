"""``verify --verify-inputs`` names every file that has changed since the store was built."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestore.errors import CorruptStoreError, InputError
from featurestore.verify.findings import InputVerification
from featurestore.verify.store import verify
from manyviews.operations import current_inputs
from producers.sources.collection import CollectionConfig
from tests.faults.fakes import SAMPLES, make, make_data

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder with a synopsis that is not JSON and an odd name, and a store of texts."""
    folder = tmp_path_factory.mktemp("inputs")
    data = make_data(folder / "data")
    (data / "0000003.json").write_text("{")
    odd = os.fsdecode(b"zz \xff")
    (data / f"{odd}.jpg").write_bytes(b"")
    (data / f"{odd}.json").write_text('{"plot": "w1 w2"}')
    make(data, folder / "store")
    return data, folder / "store"


@pytest.fixture
def data(built: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "data"))


def compare(store: Path, data: Path) -> InputVerification:
    return current_inputs.compare(store, CollectionConfig.mm_imdb(data), verify(store))


def test_nothing_changed(built: tuple[Path, Path], data: Path) -> None:
    """No poster was read, and a synopsis that is not JSON has a digest nevertheless."""
    result = compare(built[1], data)
    assert (result.compared, result.unknown, result.changed) == (SAMPLES + 1, SAMPLES + 1, [])


def same_size_and_time(path: Path) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (same_size_and_time, "SHA-256 "),
        (Path.unlink, "No such file or directory"),
        (fifo, "not a file any more"),
        (folder, "not a file any more"),
        (lambda path: path.write_bytes(b""), f"SHA-256 {hashlib.sha256(b'').hexdigest()}, and "),
    ],
    ids=["content", "gone", "fifo", "folder", "empty"],
)
def test_each_change_is_named(
    built: tuple[Path, Path], data: Path, change: Change, problem: str
) -> None:
    names = ["0000000.json", "0000003.json", "0000017.json", os.fsdecode(b"zz \xff.json")]
    for name in names:
        change(data / name)
    result = compare(built[1], data)
    assert [name for name, _ in result.changed] == names
    assert all(reported.startswith(problem) for _, reported in result.changed)
    assert result.compared == SAMPLES + 1


def test_only_committed_samples_are_compared(
    built: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """Only the last chunk, which is not full, is committed; other samples have no digests."""
    store = tmp_path / "store"
    shutil.copytree(built[1], store)
    ledger = store / "records/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[-1])
    for path in data.glob("*.json"):
        path.write_text("{}")
    last = [f"{i:07d}.json" for i in range(16, SAMPLES)] + [os.fsdecode(b"zz \xff.json")]
    result = compare(store, data)
    assert [name for name, _ in result.changed] == last
    assert result.compared == len(last)


def test_what_cannot_be_compared(built: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        compare(built[1], tmp_path / "nowhere")
    store = tmp_path / "store"
    shutil.copytree(built[1], store)
    (store / "records/samples.jsonl").write_text(json.dumps({"no": "list"}) + "\n")
    with pytest.raises(CorruptStoreError, match=r"samples\.jsonl"):
        compare(store, data)
