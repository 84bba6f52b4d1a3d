"""One flipped byte anywhere: ``verify`` names the file, and no reader returns a wrong number.

``tests/featurestore`` holds each kind of damage against each function; here every offset of every
kind of file (a sample of them, unless the profile is nightly) goes through every way of reading.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import CorruptStoreError, ManyViewsError
from featurestore.imdb.materialize import PREFIX, materialize, verify_materialized
from featurestore.storage import writer as stores
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY
from tests.faults.harness import COUNTS
from tests.featurestore.stores import DIMS, commit, make_records, make_store, tree

SAMPLES = 6  # two chunks, the last one half full
OFFSETS = 100_000 if NIGHTLY else 48
FILES = [
    "zarr.json",
    "records/zarr.json",
    "records/moments/zarr.json",
    "records/ledger.jsonl",
    "records/samples.jsonl",
    "clip_image/zarr.json",
    "records/moments/clip_text/zarr.json",
    "clip_image/c.1.0.0",
    "clip_text/c.0.0.0",
    "records/moments/clip_image/c.0.0.0",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("damage") / "store"
    return path, make_store(path, samples=SAMPLES)


@pytest.fixture
def copy(sound: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(sound[0], tmp_path / "store")
    return tmp_path / "store"


def kinds(root: Path) -> set[str]:
    """The kind of a store's file, without the chunk's number and the feature's name."""
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    names = {n for n in names if not n.startswith("records/runs/")}
    return {
        n.replace("clip_text", "*").replace("clip_image", "*").replace("c.1.", "c.0.")
        for n in names
    }


def test_every_kind_of_file_is_damaged_below(sound: tuple[Path, Any]) -> None:
    listed = {
        n.replace("clip_text", "*").replace("clip_image", "*").replace("c.1.", "c.0.")
        for n in FILES
    }
    assert listed == kinds(sound[0])


def everything(path: Path) -> dict[str, Any]:
    """Everything that a reader can read from a store."""
    store = FeatureStore(path)
    found: dict[str, Any] = {"samples": store.samples, "records": store.records}
    for name in store.features:
        chunks = [store.read_chunk(name, c) for c in range(store.spec.chunks)]
        found[name] = np.concatenate(chunks)
        moments = store.moments(name)
        found |= {f"{name}.mean": moments.mean, f"{name}.m2": moments.m2}
    dataset = FeatureDataset(path, views="all", zscore="none", checksum=True)
    found |= {f"dataset.{k}": v.numpy() for k, v in dataset.batch(range(len(dataset))).items()}
    scaled = FeatureDataset(path, checksum=True)
    return found | {f"scaled.{k}": v.numpy() for k, v in scaled.batch(range(len(scaled))).items()}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) if isinstance(a[k], np.ndarray) else a[k] == b[k] for k in a
    )


def meaning(file: str, data: bytes) -> Any:
    """The meaning of a file; white space between the tokens of a document has none."""
    return json.loads(data) if file.endswith("zarr.json") else data


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_is_named_and_never_read(
    sound: tuple[Path, Any], copy: Path, file: str
) -> None:
    right = everything(sound[0])
    whole = (copy / file).read_bytes()
    rng = random.Random(file)
    offsets = sorted(rng.sample(range(len(whole)), min(len(whole), OFFSETS)))
    refused = 0
    for at in offsets:
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        (copy / file).write_bytes(data)
        findings = verify(copy).findings
        try:
            same = meaning(file, bytes(data)) == meaning(file, whole)
        except ValueError:
            same = False
        if not same:
            assert [f for f in findings if f.file == file], (at, bytes(data[at - 20 : at + 20]))
        else:
            assert findings == [], at
        try:
            read = everything(copy)
        except ManyViewsError as e:
            # Not a store of ours, another schema, an unfinished one; else damage, which is named.
            refused += 1
            named = e.file if isinstance(e, CorruptStoreError) else file
        else:
            named = file
            assert equal(read, right), at
        assert named == file, at
    COUNTS["flipped byte"] += len(offsets)
    (copy / file).write_bytes(whole)
    assert equal(everything(copy), right)
    if "/c." in file or file.endswith(".jsonl"):
        assert refused == len(offsets)


@pytest.mark.parametrize("damage", ["flip", "empty", "half", "delete"])
@pytest.mark.parametrize("file", ["clip_image/c.1.0.0", "records/moments/clip_text/c.0.0.0"])
def test_no_way_of_reading_takes_a_damaged_chunk_for_data(
    sound: tuple[Path, Any], copy: Path, file: str, damage: str
) -> None:
    """Named by file and chunk; after a repair exactly that chunk is rebuilt."""
    path, chunk = copy / file, int(file.split("c.")[-1][0])
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        flipped = data[:99] + bytes([data[99] ^ 4]) + data[100:]
        path.write_bytes({"flip": flipped, "empty": b"", "half": data[: len(data) // 2]}[damage])
    COUNTS[f"chunk {damage}"] += 1
    found = verify(copy)
    assert {(f.file, f.chunk) for f in found.findings} == {(file, chunk)}
    with pytest.raises(CorruptStoreError) as caught:
        FeatureDataset(copy, checksum=True)
    assert (caught.value.file, caught.value.chunk) == (file, chunk)
    with pytest.raises(CorruptStoreError, match="is damaged"):
        materialize(FeatureStore(copy), copy.parent / "out")
    assert not list((copy.parent / "out").glob("*_manifest.json"))
    lock = stores.take_lock(copy)
    if damage != "flip":  # what a glance at the files shows is not built on
        with pytest.raises(CorruptStoreError, match="verify --repair"):
            StoreWriter(copy, lock)
    assert repair(copy, found) == [chunk]
    lock.release()
    with StoreWriter(copy, stores.take_lock(copy)) as writer:
        commit(writer, [chunk], sound[1], make_records(writer.spec))
        writer.finish()
    assert verify(copy).findings == []
    assert tree(copy) == tree(sound[0])


@pytest.mark.parametrize("folder", ["clip_text", "records/moments/clip_image"])
def test_a_sound_file_in_the_wrong_place_is_damage(copy: Path, folder: str) -> None:
    """Each chunk fits its own checksum; only the ledger knows which one belongs where."""
    shutil.copy(copy / folder / "c.0.0.0", copy / folder / "c.1.0.0")
    COUNTS["chunk in the wrong place"] += 1
    file = f"{folder}/c.1.0.0"
    assert {(f.file, f.chunk) for f in verify(copy).findings} == {(file, 1)}
    with pytest.raises(CorruptStoreError, match="not what was committed") as caught:
        everything(copy)
    assert (caught.value.file, caught.value.chunk) == (file, 1)


def test_without_the_option_only_sizes_are_looked_at(copy: Path) -> None:
    """Opening stays fast; the flipped byte is then read, which is why the option exists."""
    path = copy / "clip_image" / "c.0.0.0"
    data = bytearray(path.read_bytes())
    data[40] ^= 0x40
    path.write_bytes(data)
    FeatureDataset(copy, zscore="none")
    with pytest.raises(CorruptStoreError, match=r"clip_image/c\.0\.0\.0 \(chunk 0\)"):
        FeatureDataset(copy, zscore="none", checksum=True)
    # Only the features that are read are checked.
    FeatureDataset(copy, ["clip_text"], zscore="none", checksum=True)


def test_a_chunk_that_the_ledger_does_not_know_is_not_there(
    sound: tuple[Path, Any], tmp_path: Path
) -> None:
    """Its file is complete and correct, but was not committed: it is rebuilt."""
    store = tmp_path / "store"
    make_store(store, samples=SAMPLES, chunks=[0])
    for folder in (*DIMS, *(f"records/moments/{name}" for name in DIMS)):
        shutil.copy(sound[0] / folder / "c.1.0.0", store / folder / "c.1.0.0")
    found = verify(store)
    assert found.findings == []
    assert sum("was not committed" in notice for notice in found.notices) == 4
    assert FeatureStore(store).ledger.missing == [1]
    with pytest.raises(CorruptStoreError, match="not committed"):
        FeatureStore(store).read_chunk("clip_text", 1)
    with StoreWriter(store, stores.take_lock(store)) as writer:
        commit(writer, [1], sound[1], make_records(writer.spec))
        writer.finish()
    assert tree(store) == tree(sound[0])


# Materialized files --------------------------------------------------------------------------


@pytest.fixture
def out(sound: tuple[Path, Any], tmp_path: Path) -> Path:
    materialize(FeatureStore(sound[0]), tmp_path / "out")
    return tmp_path / "out"


def test_sound_files_have_no_findings(out: Path) -> None:
    assert verify_materialized(out) == []
    assert len(list(out.iterdir())) == 2 * len(DIMS) + 2


@pytest.mark.parametrize("offset", [0, 0.3, 0.999])
def test_each_edited_file_is_named(out: Path, offset: float) -> None:
    for path in sorted(out.iterdir()):
        whole = path.read_bytes()
        data = bytearray(whole)
        data[int(offset * len(data))] ^= 1
        path.write_bytes(data)
        [finding] = verify_materialized(out)
        assert finding.file == path.name
        COUNTS["materialized file"] += 1
        path.write_bytes(whole)
    assert verify_materialized(out) == []


def test_lost_cut_and_longer_files_are_named(out: Path) -> None:
    rows, stats = out / f"{PREFIX}_clip_text.npy", out / f"{PREFIX}_clip_text.stats.npz"
    rows.write_bytes(rows.read_bytes() + b"\0")
    stats.unlink()
    found = {f.file: f.problem for f in verify_materialized(out)}
    assert found.keys() == {rows.name, stats.name}
    assert "No such file" in found[stats.name]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(total_rows=m["total_rows"] + 1),
        lambda m: m.update(zscore="none"),
        lambda m: m["dims"].update(clip_text=5),
        lambda m: m["sha256"].popitem(),
        lambda m: m.pop("crc32c"),
        lambda m: m.update(more=1),
    ],
)
def test_an_edited_manifest_is_named(out: Path, change: Any) -> None:
    path = out / f"{PREFIX}_manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest, indent=2))
    assert [f.file for f in verify_materialized(out)] == [path.name]
    COUNTS["materialized file"] += 1


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b'{"sha256": 3}', b"\xff"])
def test_no_manifest_means_not_materialized(out: Path, data: bytes | None) -> None:
    path = out / f"{PREFIX}_manifest.json"
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    assert [f.file for f in verify_materialized(out)] == [path.name]
