"""Collections that change between builds: refused, rebuilt or appended, and never mixed.

The backbones are exact functions of each text, so that a store that was changed holds what one that
was built at once holds. ``KINDS`` writes the same samples as each kind of collection.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import ConfigError, InputError, StoreMismatchError
from featurestore.storage.store import FeatureStore
from featurestore.verify.findings import InputVerification
from featurestore.verify.store import verify
from manyviews.operations import current_inputs
from producers.sources.collection import CollectionConfig
from tests.conftest import NIGHTLY, tree_digest
from tests.faults import fakes
from tests.faults.harness import COUNTS, Bench

# Each sample's texts under two keys or columns, by id.
Row = Mapping[str, list[str]]
Rows = Mapping[str, Row]
SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of collection.

    Attributes:
        write: writes samples below a folder; returns the description of the collection, which
            reads the texts of the key ``text``.
        other: describes the same collection with the texts of the key ``tagline``.
        is_sorted: whether the order is that of the ids, whatever order was written.
        name: what messages call the texts of the sample of a number.
    """

    write: Callable[[Path, Rows], CollectionConfig]
    other: Callable[[CollectionConfig], CollectionConfig]
    is_sorted: bool
    name: str = "s{:03}"


def write_folder(folder: Path, rows: Rows) -> CollectionConfig:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for id_, row in rows.items():
        (folder / f"{id_}.json").write_text(json.dumps(row))
    return CollectionConfig(kind="folder", path=str(folder))


def by_key(collection: CollectionConfig) -> CollectionConfig:
    return replace(collection, text_key="tagline")


def write_lines(folder: Path, rows: Rows) -> CollectionConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": id_, **row}) + "\n" for id_, row in rows.items()))
    return CollectionConfig(kind="table", path=str(path), text=("text",))


def write_parquet(folder: Path, rows: Rows) -> CollectionConfig:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    columns = {name: [row[name] for row in rows.values()] for name in ("text", "tagline")}
    pq.write_table(pa.table({"id": list(rows), **columns}), path)
    return CollectionConfig(kind="table", path=str(path), text=("text",))


def by_column(collection: CollectionConfig) -> CollectionConfig:
    return replace(collection, text=("tagline",))


def write_tar(folder: Path, rows: Rows) -> CollectionConfig:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for id_, row in rows.items():
            data = json.dumps(row).encode()
            member = tarfile.TarInfo(f"{id_}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return CollectionConfig(kind="webdataset", path=str(folder / "rows.tar"), text=("text",))


KINDS = {
    "folder": Kind(write_folder, by_key, is_sorted=True),
    "jsonl": Kind(write_lines, by_column, is_sorted=False, name="row {}"),
    "parquet": Kind(write_parquet, by_column, is_sorted=False, name="row {}"),
    "tar": Kind(write_tar, by_column, is_sorted=False),
}


def rows_of(first: int = 0, count: int = SAMPLES) -> dict[str, Row]:
    """Samples with one to three texts; text and tagline have the same number of bytes."""
    return {
        f"s{i:03}": {
            "text": [f"w{(7 * i + j) % 90:02} w{(i + 11 * j) % 90:02}" for j in range(1 + i % 3)],
            "tagline": [f"w{(i + j + 1) % 90:02} w{(5 * i + j) % 90:02}" for j in range(1 + i % 3)],
        }
        for i in range(first, first + count)
    }


def make(collection: CollectionConfig, store: Path, **changes: Any) -> FeatureStore:
    values: dict[str, Any] = {"views": fakes.VIEWS, "chunk": 4, "features": tuple(fakes.DIMS)}
    values |= {"batch_sizes": dict.fromkeys(fakes.DIMS, 8), "producers": 1, "threads": 1}
    with fakes.loaded():
        build(BuildConfig(collection=collection, store=store, device="cpu", **values | changes))
    return FeatureStore(store)


def compare(store: Path, collection: CollectionConfig) -> InputVerification:
    return current_inputs.compare(store, collection, verify(store))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """A store of each kind of collection, built when it is first asked for; read only."""
    folder = tmp_path_factory.mktemp("collections")

    @cache
    def store_of(kind: Kind) -> Path:
        part = folder / kind.write.__name__
        make(kind.write(part / "data", rows_of()), part / "store")
        return part / "store"

    return store_of


@pytest.fixture
def built(
    kind: Kind, stores: Callable[[Kind], Path], tmp_path: Path
) -> tuple[CollectionConfig, Path]:
    """A collection and a store of it."""
    collection = kind.write(tmp_path / "data", rows_of())
    shutil.copytree(stores(kind), tmp_path / "store")
    return collection, tmp_path / "store"


def refused(collection: CollectionConfig, store: Path, **changes: Any) -> str:
    """The message of a refused resume, which changes nothing."""
    before = tree_digest(store)
    with pytest.raises(StoreMismatchError) as caught:
        make(collection, store, resume=True, **changes)
    COUNTS["collection changed"] += 1
    assert tree_digest(store) == before
    assert len(str(caught.value).splitlines()) <= 4
    return str(caught.value)


def test_an_unchanged_collection(built: tuple[CollectionConfig, Path]) -> None:
    collection, store = built
    found = compare(store, collection)
    # No image was read: the fakes are text backbones.
    assert (found.compared, found.changed) == (SAMPLES, [])
    before = tree_digest(store)
    make(collection, store, resume=True, verify_inputs=True)
    assert tree_digest(store) == before


def test_a_changed_text_is_named_refused_and_rebuilt(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path
) -> None:
    _collection, store = built
    rows = rows_of()
    rows["s003"] = {**rows["s003"], "text": ["w88 w89 w01"]}
    changed = kind.write(tmp_path / "data", rows)
    (problem,) = compare(store, changed).changed
    assert kind.name.format(3) in problem[0]
    assert problem[1].startswith("SHA-256 ")
    message = refused(changed, store)
    assert "content of inputs" in message
    assert kind.name.format(3) in message
    assert "--remake-changed" in message
    make(changed, store, resume=True, remake_changed=True)
    make(changed, tmp_path / "golden")
    assert tree_digest(store) == tree_digest(tmp_path / "golden")
    assert compare(store, changed).changed == []


def test_a_sample_that_is_gone(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path
) -> None:
    _collection, store = built
    rows = rows_of()
    del rows["s004"]
    fewer = kind.write(tmp_path / "data", rows)
    assert compare(store, fewer).changed == [("s004", "no sample has this id any more")]
    for options in ({}, {"remake_changed": True}, {"append": True}):
        message = refused(fewer, store, **options)
        assert "-'s004'" in message
        assert "restore the missing samples" in message


def test_samples_are_appended_behind_the_old_ones_only(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path
) -> None:
    _collection, store = built
    more = kind.write(tmp_path / "data", rows_of(0, SAMPLES + 3))
    message = refused(more, store)
    assert "+'s010', +'s011', +'s012'" in message
    assert "--resume --append" in message
    make(more, store, resume=True, append=True)
    make(more, tmp_path / "golden")
    assert tree_digest(store) == tree_digest(tmp_path / "golden")
    before = kind.write(tmp_path / "data", {"a000": rows_of()["s000"], **rows_of(0, SAMPLES + 3)})
    message = refused(before, store, append=True)
    assert "would move their rows" in message


def test_a_text_that_changed_is_not_appended_to(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path
) -> None:
    _collection, store = built
    rows = rows_of(0, SAMPLES + 3)
    rows["s009"] = {**rows["s009"], "text": ["w88 w89 w01 w02"]}
    message = refused(kind.write(tmp_path / "data", rows), store, append=True)
    assert kind.name.format(9) in message


def test_another_order_of_the_same_samples(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path
) -> None:
    _collection, store = built
    turned = dict(reversed(rows_of().items()))
    again = kind.write(tmp_path / "data", turned)
    if kind.is_sorted:
        before = tree_digest(store)
        make(again, store, resume=True)
        assert tree_digest(store) == before
        assert compare(store, again).changed == []
        return
    message = refused(again, store)
    assert "row 0 is 's009', was 's000'" in message
    assert "restore the order" in message
    moved = compare(store, again).changed
    assert [name for name, _ in moved] == [f"s{i:03}" for i in range(1, SAMPLES)]
    assert "now comes before it" in moved[0][1]


def test_another_key_of_unchanged_files_is_refused(kind: Kind, tmp_path: Path) -> None:
    """Sizes and times of the files are the same, and so is each text's length."""
    collection, store = kind.write(tmp_path / "data", rows_of()), tmp_path / "store"
    make(collection, store)
    other = kind.other(collection)
    assert other.mapping_sha256 != collection.mapping_sha256
    message = refused(other, store)
    assert "content of inputs" in message
    assert "other content in 10 inputs" in message
    message = refused(other, store, remake_changed=True)
    assert "Most inputs changed: are these the right inputs, columns and keys?" in message
    assert len(compare(store, other).changed) == SAMPLES


def test_an_interrupted_build_is_not_continued_with_another_key(kind: Kind, tmp_path: Path) -> None:
    collection = kind.write(tmp_path / "data", rows_of())

    def stop(event: str, facts: Mapping[str, Any]) -> None:
        if event == "chunk" and facts["chunk"] == 0:
            raise RuntimeError("stopped")

    values = {"views": fakes.VIEWS, "chunk": 4, "features": tuple(fakes.DIMS), "device": "cpu"}
    values |= {"batch_sizes": dict.fromkeys(fakes.DIMS, 8), "producers": 1, "threads": 1}
    config = BuildConfig(collection=collection, store=tmp_path / "store", **values)  # type: ignore[arg-type]
    with fakes.loaded(), pytest.raises(RuntimeError, match="stopped"):
        build(config, [stop])
    assert fakes.committed(tmp_path / "store") == [0]
    refused(kind.other(collection), tmp_path / "store")
    make(collection, tmp_path / "store", resume=True)
    make(collection, tmp_path / "golden")
    assert tree_digest(tmp_path / "store") == tree_digest(tmp_path / "golden")


def with_rules() -> list[Any]:
    """Each kind with each rule; by default, all rules of folders and one of the others."""
    return [
        pytest.param(
            *(kind, rule), marks=[] if kind == "folder" or rule == "join" else pytest.mark.nightly
        )
        for kind in KINDS
        for rule in ("join", "first", "longest")
    ]


@pytest.mark.parametrize(("kind", "rule"), with_rules(), indirect=["kind"])
def test_the_clean_text_is_chosen_by_the_rule(kind: Kind, tmp_path: Path, rule: str) -> None:
    """The number of words is that of the clean text; the digest is that of all texts."""
    texts = {
        "one": ["w1 w2 w3 w4"],
        "two": ["w1", "w2 w3 w4 w5 w6"],
        "three": ["w1 w2", "w3", "w4"],
    }
    words = {
        "join": {"one": 4, "two": 6, "three": 4},
        "first": {"one": 4, "two": 1, "three": 2},
        "longest": {"one": 4, "two": 5, "three": 2},
    }
    rows: Rows = {id_: {"text": texts[id_], "tagline": []} for id_ in sorted(texts)}
    collection = replace(kind.write(tmp_path / "data", rows), clean_text=rule)
    store = make(collection, tmp_path / "store")
    assert {store.stems[r.index]: r.words for r in store.records} == words[rule]
    assert store.fingerprint["clean_text"] == rule
    plain = make(replace(collection, clean_text=None), tmp_path / "plain")
    assert [r.text_sha256 for r in plain.records] == [r.text_sha256 for r in store.records]
    assert (tree_digest(plain.path) == tree_digest(store.path)) == (rule == "first")
    for other in {"join", "first", "longest"} - {rule}:
        message = refused(replace(collection, clean_text=other), tmp_path / "store")
        assert f"stored: {rule}\n  now:    {other}\n" in message
        assert f'Continue with clean_text = "{rule}" in [collection]' in message


def test_a_collection_that_is_gone(built: tuple[CollectionConfig, Path], tmp_path: Path) -> None:
    collection, store = built
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    before = tree_digest(store)
    for options in ({}, {"remake_changed": True}):
        with pytest.raises(InputError):
            make(collection, store, resume=True, **options)
    with pytest.raises(InputError):
        compare(store, collection)
    assert tree_digest(store) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros"])
def test_a_container_that_was_damaged_between_builds(
    kind: Kind, built: tuple[CollectionConfig, Path], tmp_path: Path, damage: str
) -> None:
    """One file loses its second half, or all its bytes: nothing of it is taken for data."""
    collection, store = built
    path = max(
        (path for path in (tmp_path / "data").iterdir()), key=lambda path: path.stat().st_size
    )
    data = path.read_bytes()
    half = len(data.rstrip(b"\0")) // 2  # the end of a tar file is zeros
    damaged = {"cut": data[:half], "empty": b"", "zeros": data[:half] + bytes(len(data) - half)}
    path.write_bytes(damaged[damage])
    before = tree_digest(store)
    with pytest.raises((ConfigError, InputError, StoreMismatchError)) as caught:
        make(collection, store, resume=True)
    COUNTS["collection changed"] += 1
    assert len(str(caught.value).splitlines()) <= 4
    assert tree_digest(store) == before
    try:
        problems = compare(store, collection).changed
    except (ConfigError, InputError):
        return
    assert problems


@pytest.mark.parametrize(
    "kind",
    ["folder", "parquet", "tar", pytest.param("jsonl", marks=pytest.mark.nightly)],
    indirect=True,
)
def test_a_build_that_is_killed_continues_with_the_same_rows(
    bench: Bench, kind: Kind, tmp_path: Path
) -> None:
    """SIGKILL at a disk operation: the resumed store has the bytes of an undisturbed build."""
    collection = asdict(kind.write(tmp_path / "data", rows_of()))
    asked = {"data_dir": None, "collection": collection}
    golden, store = tmp_path / "golden", tmp_path / "store"
    assert bench.run([bench.build(golden, **asked)]).kind == "done"
    for n in range(10, 200, 10) if NIGHTLY else (40, 110):
        shutil.rmtree(store, ignore_errors=True)
        run = bench.fault(bench.build(store, resume=True, **asked), n, "kill")
        assert run.kind == "killed", run
        done = bench.run([bench.build(store, resume=True, **asked), ("verify", str(store))])
        assert (done.kind, done.values[-1]) == ("done", []), done
        assert tree_digest(store) == tree_digest(golden)
