import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from featurestore.errors import (
    CorruptStoreError,
    InputError,
    ManyViewsError,
    StorageError,
    StoreLockedError,
    StoreMismatchError,
)
from featurestore.reading.npy_folder import stems_of
from featurestore.records import BadInput
from featurestore.storage import shape, store
from featurestore.storage.creation import create as create_store
from featurestore.storage.creation import erase, state_of
from featurestore.storage.ledger import Ledger
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import SCHEMA, FeatureStore, is_store
from featurestore.storage.writer import StoreWriter, take_lock
from tests.featurestore import kills
from tests.featurestore.kills import killed_at
from tests.featurestore.stores import (
    DIMS,
    StoreAndRows,
    commit,
    make_fingerprint,
    make_records,
    make_rows,
    make_samples,
    make_store,
    tree,
    zarr_rows,
)

SPEC = StoreSpec(11, 4, 4, DIMS)
STEMS = [f"{i:07d}" for i in range(11)]
BAD = {
    2: [BadInput(2, "image", "truncated", "ends after 3 bytes")],
    9: [BadInput(9, "image", "empty", ""), BadInput(9, "text", "not-utf8", "caf\udce9")],
}


def create(path: Path, *, spec: StoreSpec = SPEC, stems: list[str] = STEMS) -> StoreWriter:
    lock = take_lock(path)
    return create_store(path, spec, make_fingerprint(spec, stems), make_samples(stems), lock)


def edit_root(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the store's record in the root's zarr.json."""
    document = json.loads((path / "zarr.json").read_bytes())
    change(document["attributes"]["manyviews"])
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    """A complete store and its rows, which tests must not change."""
    path = tmp_path_factory.mktemp("golden") / "store"
    return path, make_store(path, bad=BAD)


@pytest.fixture
def damaged(golden: StoreAndRows, tmp_path: Path) -> Path:
    """A copy of the store, for damage."""
    return shutil.copytree(golden[0], tmp_path / "copy")


# --- create, open, read ---


def test_everything_is_read_back(golden: StoreAndRows) -> None:
    path, rows = golden
    opened = FeatureStore(path)
    assert opened.complete
    assert opened.spec == SPEC
    assert opened.features == ("clip_image", "clip_text")
    assert opened.fingerprint == make_fingerprint(SPEC, STEMS)
    assert list(opened.samples) == make_samples(STEMS)
    assert opened.records == make_records(SPEC, BAD)
    assert opened.bad_inputs == [*BAD[2], *BAD[9]]
    for name in DIMS:
        np.testing.assert_array_equal(zarr_rows(path, name), rows[name])
        read = np.concatenate([opened.read_chunk(name, chunk) for chunk in range(3)])
        np.testing.assert_array_equal(read, rows[name])


def test_moments_are_those_of_all_rows(golden: StoreAndRows) -> None:
    path, rows = golden
    for name, dim in DIMS.items():
        flat = rows[name].reshape(-1, dim).astype(np.float64)
        moments = FeatureStore(path).moments(name)
        assert moments.count == 44
        np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(moments.sigma, flat.std(0), rtol=1e-12)
        stored = zarr_rows(path, f"records/moments/{name}")
        assert stored.shape == (3, 2, dim)
        np.testing.assert_allclose(stored[2, 0], flat[32:].mean(0), rtol=1e-12, atol=1e-13)


def test_moments_of_a_chunk_are_those_of_its_rows(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", chunks=[0, 2])
    store = FeatureStore(tmp_path / "s")
    moments = store.chunk_moments("clip_text", 2)
    flat = rows["clip_text"][8:].reshape(-1, DIMS["clip_text"]).astype(np.float64)
    assert moments.count == len(flat)
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(moments.sigma, flat.std(0), rtol=1e-12)
    with pytest.raises(CorruptStoreError, match="not committed"):
        store.chunk_moments("clip_text", 1)


def test_nothing_depends_on_the_run(golden: StoreAndRows, tmp_path: Path) -> None:
    make_store(tmp_path / "elsewhere", bad=BAD)
    assert tree(tmp_path / "elsewhere") == tree(golden[0])


def test_the_order_of_the_chunks_leaves_no_trace(golden: StoreAndRows, tmp_path: Path) -> None:
    make_store(tmp_path / "store", bad=BAD, chunks=[2, 0, 1])
    assert tree(tmp_path / "store") == tree(golden[0])


def test_resume_at_every_chunk(golden: StoreAndRows, tmp_path: Path) -> None:
    path, rows = golden
    for done in range(4):
        resumed = tmp_path / f"after-{done}"
        make_store(resumed, bad=BAD, chunks=range(done))
        with StoreWriter(resumed, take_lock(resumed)) as writer:
            assert writer.notices == []
            assert writer.ledger.missing == list(range(done, 3))
            commit(writer, writer.ledger.missing, rows, make_records(SPEC, BAD))
            writer.finish()
        assert tree(resumed) == tree(path)


def test_a_chunk_of_fill_values_and_of_zeros_is_there(tmp_path: Path) -> None:
    rows = {n: np.zeros((11, 4, d), np.float32) for n, d in DIMS.items()}
    rows["clip_image"][4:8] = np.nan
    make_store(tmp_path / "s", rows=rows)
    assert (tmp_path / "s/clip_image/c.1.0.0").stat().st_size == 4 * 4 * 64 * 4 + 4
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / "s").read_chunk("clip_image", 1), rows["clip_image"][4:8]
    )


def test_an_uncommitted_chunk_is_not_read(tmp_path: Path) -> None:
    make_store(tmp_path / "s", chunks=[0, 2])
    opened = FeatureStore(tmp_path / "s")
    assert opened.ledger.missing == [1]
    with pytest.raises(CorruptStoreError, match="not committed") as caught:
        opened.read_chunk("clip_text", 1)
    assert (caught.value.file, caught.value.chunk) == ("clip_text/c.1.0.0", 1)
    with pytest.raises(InputError, match="2 of 3 chunks"):
        opened.moments("clip_text")
    with pytest.raises(InputError, match="2 of 3 chunks"):
        opened.require_complete()


def test_names_are_values_never_paths(tmp_path: Path) -> None:
    stems = ["../x", "/abs", "..", "a\nb", "a\r\nb", "caf\udce9", "zarr.json", "東京", "x" * 255]
    make_store(tmp_path / "parent/s", stems=stems, chunk=4)
    assert FeatureStore(tmp_path / "parent/s").stems == stems
    assert [p.name for p in tmp_path.iterdir()] == ["parent"]
    assert [p.name for p in (tmp_path / "parent").iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["with space", "東京", "line\nfeed", "caf\udce9", "-x"])
def test_any_path_is_valid(tmp_path: Path, name: str) -> None:
    rows = make_store(tmp_path / name / "s", chunks=[0])
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / name / "s").read_chunk("clip_text", 0), rows["clip_text"][:4]
    )


def test_a_store_behind_a_link(golden: StoreAndRows, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(golden[0])
    assert state_of(tmp_path / "link") == "store"
    assert FeatureStore(str(tmp_path / "link")).complete


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    with create(tmp_path / "s") as writer:
        with pytest.raises(StoreLockedError):
            take_lock(tmp_path / "s")
        reader = FeatureStore(tmp_path / "s")
        commit(writer, [0], make_rows(SPEC), make_records(SPEC))
        assert len(reader.ledger) == 0
        assert len(FeatureStore(tmp_path / "s").ledger) == 1
    take_lock(tmp_path / "s").release()


def test_choose_chunk_fills_whole_pages() -> None:
    assert shape.choose_chunk(0, 70, {"a": 512, "b": 768, "c": 2048}) == 64
    assert shape.choose_chunk(0, 140, {"a": 512, "b": 768, "c": 2048}) == 64
    assert shape.choose_chunk(0, 8, {"a": 512}) == 560, "4,480 rows"
    assert shape.choose_chunk(0, 8, {"a": 5}) == 512, "a multiple of 128 that is not more"
    assert shape.choose_chunk(0, 1, {"a": 1}) == 4096
    assert shape.choose_chunk(0, 70, {"a": 1}) == 512
    assert shape.choose_chunk(8, 4, {"a": 64, "b": 32}) == 8
    with pytest.raises(
        ManyViewsError,
        match=r"--chunk 4 .* 4 views \(features of 64 and 32 numbers\): use a multiple of 8",
    ):
        shape.choose_chunk(4, 4, {"a": 64, "b": 32})


# --- wrong arguments ---


@pytest.mark.parametrize("case", ["short", "views", "dims", "flat", "samples", "order", "number"])
def test_what_does_not_fit_the_store_is_refused_before_any_write(tmp_path: Path, case: str) -> None:
    rows, records, chunk = make_rows(SPEC), make_records(SPEC)[:4], 0
    part = {n: r[:4] for n, r in rows.items()}
    if case == "short":
        part["clip_text"] = part["clip_text"][:3]
    elif case == "views":
        part["clip_text"] = part["clip_text"][:, :3]
    elif case == "dims":
        part["clip_text"] = part["clip_text"][..., :64]
    elif case == "flat":
        part["clip_text"] = part["clip_text"].reshape(16, 128)
    elif case == "samples":
        records = records[:3]
    elif case == "order":
        records.reverse()
    else:
        chunk = 1
    with create(tmp_path / "s") as writer:
        before = tree(tmp_path / "s")
        with pytest.raises(ValueError, match="chunk"):
            writer.commit_chunk(chunk, part, records, {})
        assert tree(tmp_path / "s") == before


# --- the state of a path ---


def test_state_absent_and_empty(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none") == "absent"
    assert state_of(tmp_path) == "absent"


def test_state_store(golden: StoreAndRows) -> None:
    assert state_of(golden[0]) == "store"


@pytest.mark.parametrize("kind", ["file", "dangling", "unknown", "zarr", "lock-beside-work"])
def test_state_of_unknown_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("thesis")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "unknown":
        path.mkdir()
        (path / "thesis.tex").write_text("x")
    elif kind == "zarr":  # another program's group must not be taken for a store to overwrite
        zarr.create_group(path)
    else:
        take_lock(path).release()
        (path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="Choose another --store"):
        state_of(path)


def test_no_store_and_unknown_groups_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no feature store"):
        FeatureStore(tmp_path)
    zarr.create_group(tmp_path / "g", attributes={"title": "x"})
    with pytest.raises(InputError, match="manyviews did not create it"):
        FeatureStore(tmp_path / "g")


def test_erase_leaves_an_unfinished_store_with_its_lock(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("x")
    (tmp_path / "s/link").symlink_to(tmp_path / "outside")
    (tmp_path / "s/.DS_Store").write_text("x")
    lock = take_lock(tmp_path / "s")
    (tmp_path / "s/records/runs/log").write_text("kept")
    erase(tmp_path / "s")
    # Files that the store did not create must not be deleted.
    assert tree(tmp_path / "s") == {".DS_Store": b"x", "link/": b"", "records/": b""}
    assert (tmp_path / "s/records/runs/log").read_text() == "kept"
    assert (tmp_path / "outside/kept").exists()
    (tmp_path / "s/link").unlink()
    assert state_of(tmp_path / "s") == "unfinished"
    lock.release()


UNKNOWN_CONTENTS: dict[str, Callable[[Path], object]] = {
    "another file": lambda folder: (folder / "notes.txt").write_text("x"),
    "beside an array": lambda folder: [
        (folder / name).write_text("x") for name in ("zarr.json", "c.0.0.0", "thesis.tex")
    ],
    "a folder": lambda folder: (folder / "c.0.0.0").mkdir(),
    "a link": lambda folder: (folder / "c.0.0.0").symlink_to("/etc/hostname"),
    "another name": lambda folder: (folder / "c.0.0.0.old").write_text("x"),
}


@pytest.mark.parametrize("content", UNKNOWN_CONTENTS)
def test_a_folder_with_a_features_name_is_the_stores_only_by_its_content(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "s"
    make_store(path, dims={"dino": 64})
    (path / "thesis").mkdir()
    UNKNOWN_CONTENTS[content](path / "thesis")
    before = {name: data for name, data in tree(path).items() if name.startswith("thesis")}
    lock = take_lock(path)
    erase(path)
    lock.release()
    assert tree(path) == {"records/": b""} | before
    with pytest.raises(InputError, match="'thesis'"):
        state_of(path)


@pytest.mark.parametrize("name", ["Dino", "dino.1", "2d", "é"])
def test_a_folder_without_a_features_name_is_never_the_stores(tmp_path: Path, name: str) -> None:
    make_store(tmp_path / "s", dims={"dino": 64})
    lock = take_lock(tmp_path / "s")
    folder = tmp_path / "s" / name
    folder.mkdir()
    (folder / "c.0.0.0").write_text("x")
    erase(tmp_path / "s")
    lock.release()
    assert tree(tmp_path / "s") == {"records/": b"", f"{name}/": b"", f"{name}/c.0.0.0": b"x"}


# --- killed at every disk operation ---


def sweep(scenario: Callable[[int], bool], start: int = 1) -> Iterator[int]:
    """Yields n = 1, 2, ... with whether ``scenario(n)`` was killed, until it passes."""
    n = start
    while scenario(n):
        yield n
        n += 1
    assert n > start + 5, "no operation was disturbed"


@pytest.mark.usefixtures("unsynced")
def test_creation_killed_at_every_operation(tmp_path: Path) -> None:
    small = StoreSpec(5, 4, 4, {"dino": 64})
    create(tmp_path / "golden", spec=small, stems=STEMS[:5]).close()
    expected = tree(tmp_path / "golden")
    states = set()

    def scenario(n: int) -> bool:
        return killed_at(n, kills.create_store, tmp_path / f"s{n}", small, STEMS[:5])

    for n in sweep(scenario):
        path = tmp_path / f"s{n}"
        states.add(state := state_of(path))
        if state == "store":  # only the last operation, the sync of the root folder, is left
            StoreWriter(path, take_lock(path)).close()
        else:
            create(path, spec=small, stems=STEMS[:5]).close()
        assert tree(path) == expected, f"killed at operation {n}"
    assert states == {"absent", "unfinished", "store"}


@pytest.mark.usefixtures("unsynced")
def test_erasure_killed_at_every_operation_leaves_nothing_of_the_old_store(tmp_path: Path) -> None:
    small = StoreSpec(3, 4, 4, {"clip_text": 128})  # fewer chunks and features than the old one
    create(tmp_path / "golden", spec=small, stems=STEMS[:3]).close()
    expected = tree(tmp_path / "golden")
    make_store(tmp_path / "old", dims={"clip_image": 64, "dino": 128})

    def scenario(n: int) -> bool:
        path = shutil.copytree(tmp_path / "old", tmp_path / f"s{n}")
        return killed_at(n, kills.erase_store, path)

    for n in sweep(scenario):
        path = tmp_path / f"s{n}"
        state = state_of(path)
        assert state in ("store", "unfinished")
        if state == "store":  # nothing was deleted yet
            assert FeatureStore(path).complete
            continue
        create(path, spec=small, stems=STEMS[:3]).close()
        assert tree(path) == expected, f"killed at operation {n}"


@pytest.mark.usefixtures("unsynced")
def test_commit_killed_at_every_operation(golden: StoreAndRows, tmp_path: Path) -> None:
    path, rows = golden
    records = make_records(SPEC, BAD)
    make_store(tmp_path / "first", bad=BAD, chunks=[0])
    outcomes = []

    def scenario(n: int) -> bool:
        copy = shutil.copytree(tmp_path / "first", tmp_path / f"s{n}")
        return killed_at(n, kills.commit_chunk, copy, 1)

    for n in sweep(scenario, start=1):
        copy = tmp_path / f"s{n}"
        assert 0 in FeatureStore(copy).ledger
        with StoreWriter(copy, take_lock(copy)) as writer:
            outcomes.append(1 in writer.ledger)
            if 1 in writer.ledger:
                for name in DIMS:
                    np.testing.assert_array_equal(zarr_rows(copy, name)[4:8], rows[name][4:8])
            commit(writer, writer.ledger.missing, rows, records)
            writer.finish()
        assert tree(copy) == tree(path), f"killed at operation {n}"
    # Committed by the last operation but one, the write of the ledger's line, and never before.
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_recovery_says_what_it_removed(tmp_path: Path) -> None:
    make_store(tmp_path / "s", chunks=[0])
    (tmp_path / "s/clip_text/c.1.0.0.partial").write_bytes(b"x")
    (tmp_path / "s/records/moments/clip_text/c.1.0.0.partial").write_bytes(b"x")
    with (tmp_path / "s" / Ledger.FILE).open("ab") as ledger:
        ledger.write(b'{"chunk": 1, ')
    before = tree(tmp_path / "s")
    FeatureStore(tmp_path / "s")
    assert tree(tmp_path / "s") == before  # a reader changes nothing
    with StoreWriter(tmp_path / "s", take_lock(tmp_path / "s")) as writer:
        assert [n.split()[:2] for n in writer.notices] == [["removed", "2"], ["dropped", "13"]]
    make_store(tmp_path / "clean", chunks=[0])
    assert tree(tmp_path / "s") == tree(tmp_path / "clean")


# --- damage ---


def test_every_flipped_byte_of_a_chunk_file_is_found(damaged: Path) -> None:
    file = damaged / "clip_image/c.2.0.0"
    data = bytearray(file.read_bytes())
    for offset in range(0, len(data), 97):
        data[offset] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptStoreError, match=r"clip_image/c\.2\.0\.0 \(chunk 2\)"):
            FeatureStore(damaged).read_chunk("clip_image", 2)
        data[offset] ^= 1


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_every_flipped_byte_of_the_sample_list_is_found(damaged: Path, bit: int) -> None:
    file = damaged / store.SAMPLES
    data = bytearray(file.read_bytes())
    for offset in range(len(data)):
        data[offset] ^= bit
        file.write_bytes(data)
        with pytest.raises(CorruptStoreError, match="samples"):
            _ = FeatureStore(damaged).samples
        data[offset] ^= bit


@pytest.mark.parametrize("data", [b"", b"[]\n", b"{}\n", b"null\n", b'"abc"\n', b"[" * 100_000])
def test_a_sample_list_of_another_kind(damaged: Path, data: bytes) -> None:
    (damaged / store.SAMPLES).write_bytes(data)
    with pytest.raises(CorruptStoreError, match="samples"):
        _ = FeatureStore(damaged).samples


def test_a_lost_sample_and_a_lost_file(damaged: Path) -> None:
    lines = (damaged / store.SAMPLES).read_bytes().splitlines(keepends=True)
    (damaged / store.SAMPLES).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(CorruptStoreError):
        _ = FeatureStore(damaged).samples
    (damaged / store.SAMPLES).unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        _ = FeatureStore(damaged).samples


@pytest.mark.parametrize("file", ["zarr.json", "clip_image/zarr.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_metadata_that_is_not_a_json_object(damaged: Path, file: str, data: bytes) -> None:
    (damaged / file).write_bytes(data)
    with pytest.raises(CorruptStoreError) as caught:
        FeatureStore(damaged)
    assert caught.value.file == file


def test_metadata_of_another_array_or_missing(damaged: Path) -> None:
    shutil.copy(damaged / "clip_text/zarr.json", damaged / "clip_image/zarr.json")
    with pytest.raises(CorruptStoreError, match="shape"):
        FeatureStore(damaged)
    (damaged / "clip_image/zarr.json").unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        FeatureStore(damaged)


def test_huge_metadata_is_not_read(damaged: Path) -> None:
    with (damaged / "zarr.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(CorruptStoreError, match="at most"):
        FeatureStore(damaged)


@pytest.mark.parametrize("schema", [0, 1, SCHEMA + 1, str(SCHEMA), None])
def test_another_schema_version(damaged: Path, schema: int | str | None) -> None:
    edit_root(damaged, lambda record: record.update(schema=schema))
    with pytest.raises(StoreMismatchError) as caught:
        FeatureStore(damaged)
    found = caught.value
    assert (found.field, found.stored, found.new) == ("schema", schema, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("shape"),
        lambda r: r.pop("fingerprint"),
        lambda r: r.update(shape=[11, 4, 4]),
        lambda r: r.update(fingerprint=3),
        lambda r: r["fingerprint"].pop("stems_sha256"),
        lambda r: r["shape"].pop("views"),
        lambda r: r["shape"].update(extra=1),
        lambda r: r["shape"].update(samples=12),
        lambda r: r["shape"].update(samples="11"),
        lambda r: r["shape"].update(views=5),
        lambda r: r["shape"].update(chunk=8),
        lambda r: r["shape"].update(chunk=0),
        lambda r: r["shape"].update(dims=["clip_image"]),
        lambda r: r["shape"].update(dims={}),
        lambda r: r["shape"]["dims"].update(clip_image=65),
        lambda r: r["shape"]["dims"].update(clip_image=None),
        lambda r: r["shape"]["dims"].update(blip2_text=64),
    ],
)
def test_a_damaged_record(damaged: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_root(damaged, change)
    with pytest.raises(CorruptStoreError):
        _ = FeatureStore(damaged).samples


def test_features_that_are_no_longer_built_are_still_erased(tmp_path: Path) -> None:
    """Older stores may have them: their remains would otherwise count as unknown files."""
    path = tmp_path / "s"
    make_store(path, dims={"view": 64, "bad": 64})
    lock = take_lock(path)
    spec = StoreSpec(4, 4, 4, {"clip_image": 64})
    stems = ["a", "b", "c", "d"]
    create_store(path, spec, make_fingerprint(spec, stems), make_samples(stems), lock).close()
    assert not (path / "view").exists()
    assert not (path / "bad").exists()


def test_an_inaccessible_path_is_not_called_no_store(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 100)
    with pytest.raises(StorageError, match="too long"):
        is_store(place)
    with pytest.raises(StorageError, match="too long"):
        stems_of(place, "any")
