"""What a build refuses before it loads a model, and surroundings that lack something.

A store that is damaged or that nobody can write to, a place where none can be, a disk that is too
small, a file system without locks or without a sync of folders, and a group that shares a store.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from featurestore.errors import (
    ConfigError,
    CorruptStoreError,
    InputError,
    ManyViewsError,
    StorageError,
    StorageFullError,
    StoreMismatchError,
    UnsyncedFolderWarning,
)
from featurestore.storage import space
from featurestore.storage.space import free_bytes, missing_bytes, store_bytes
from featurestore.storage.store import LOCK, SCHEMA, FeatureStore
from featurestore.system import durable
from featurestore.system.locks import UNKNOWN, FileLock, lock_holder
from featurestore.verify.store import verify
from manyviews.operations.watch.watch import Looker, watch
from tests import warm
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.faults.fakes import CHUNK, DIMS, VIEWS, config, loaded, make, make_data, recovers
from tests.faults.harness import COUNTS, Bench, different
from tests.faults.test_disk import mounted, needs_mounts  # noqa: F401  a fixture
from tests.faults.test_limits import is_mapped

GROUP = 54321


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("refused") / "data")


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    make(data, data.parent / "golden")
    return data.parent / "golden"


@pytest.fixture(scope="module")
def half_built(data: Path) -> Path:
    """A store of which two chunks are committed."""
    store = data.parent / "half_built"

    def stop(event: str, facts: Any) -> None:
        if event == "chunk" and facts["built"] == 2 * CHUNK:
            raise KeyboardInterrupt

    with loaded(), pytest.raises(KeyboardInterrupt):
        build(config(data, store), [stop])
    return store


@pytest.fixture
def half(half_built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half_built, tmp_path / "store")


# Before the models ----------------------------------------------------------------------------

Change = Callable[[Path], object]


def shortened(store: Path) -> None:
    os.truncate(store / "clip_text/c.1.0.0", 100)


def of_schema_1(store: Path) -> None:
    path = store / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": %d' % SCHEMA, b'"schema": 1'))


def without(file: str) -> Change:
    return lambda store: (store / file).unlink()


def replaced(file: str) -> Change:
    return lambda store: (store / file).write_text("{}")


def folder_for(file: str) -> Change:
    def change(store: Path) -> None:
        (store / file).unlink()
        (store / file).mkdir()

    return change


def fixed(name: str) -> Change:
    """A folder that this user may not write to; root may, so the answer is another."""

    def change(store: Path) -> None:
        honest = os.access

        def access(path: Any, mode: int) -> bool:
            return honest(path, mode) and not (mode & os.W_OK and Path(path) == store / name)

        PATCH.append(access)

    return change


PATCH: list[Callable[..., bool]] = []
# What is done to a store of which two chunks are there, and the file and the words of the error.
CASES: dict[str, tuple[Change, type[ManyViewsError], str]] = {
    "chunk lost": (without("clip_text/c.1.0.0"), CorruptStoreError, "clip_text/c.1.0.0"),
    "chunk of another size": (shortened, CorruptStoreError, "100 bytes, expected"),
    "moments lost": (without("records/moments/blip2_text/c.0.0.0"), CorruptStoreError, "missing"),
    "array document": (replaced("clip_text/zarr.json"), CorruptStoreError, "clip_text/zarr.json"),
    "moments document": (
        replaced("records/moments/clip_text/zarr.json"),
        CorruptStoreError,
        "records/moments/clip_text/zarr.json",
    ),
    "group document": (without("records/moments/zarr.json"), CorruptStoreError, "missing"),
    "another schema": (of_schema_1, StoreMismatchError, "another schema"),
    "ledger lost": (without("records/ledger.jsonl"), CorruptStoreError, "ledger"),
    "samples lost": (without("records/samples.jsonl"), CorruptStoreError, "samples"),
    "folder for the lock": (folder_for(LOCK), StorageError, "Is a directory"),
    "fixed root": (fixed(""), StorageError, "Permission denied"),
    "fixed array": (fixed("clip_text"), StorageError, "Permission denied"),
    "fixed records": (fixed("records"), StorageError, "Permission denied"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_store_is_refused_before_a_model_is_loaded(
    data: Path, half: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, kind, words = CASES[case]
    PATCH.clear()
    change(half)
    if PATCH:
        monkeypatch.setattr(os, "access", PATCH[0])
    before = tree_digest(half)
    with loaded() as models, pytest.raises(kind, match=words):
        build(config(data, half, resume=True))
    assert models == {}
    assert tree_digest(half) == before
    COUNTS["foreign store"] += 1


def test_options_that_do_not_fit_are_refused_before_a_model_is_loaded(
    data: Path, half: Path
) -> None:
    for error, words, changes in (
        (StoreMismatchError, "another chunk", {"chunk": 8}),
        (ConfigError, "--chunk 3 does not fill whole memory pages", {"chunk": 3}),
        (StoreMismatchError, "another clip_text.batch_size", {"batch_sizes": {"clip_text": 4}}),
        (StoreMismatchError, "another blip2_text.dtype", {"dtype": "bfloat16"}),
    ):
        with loaded() as models, pytest.raises(error, match=words):
            build(config(data, half, resume=True, **changes))
        assert models == {}


def test_a_folder_in_the_way_of_a_feature_is_not_replaced(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(data, store, features=("clip_text",), batch_sizes={"clip_text": 8})
    (store / "blip2_text").mkdir()
    (store / "blip2_text/notes.txt").write_text("years of work")
    with loaded() as models, pytest.raises(InputError, match="is in the way of the feature"):
        build(config(data, store, resume=True))
    assert models == {}
    assert (store / "blip2_text/notes.txt").read_text() == "years of work"
    shutil.rmtree(store / "blip2_text")
    make(data, store, resume=True)
    assert verify(store).findings == []


@pytest.mark.parametrize("place", ["file/store", "store"])
def test_a_place_where_no_store_can_be(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    if place == "store":
        monkeypatch.setattr(os, "access", lambda *_: False)
    with loaded() as models, pytest.raises(StorageError, match=str(tmp_path)):
        build(config(data, tmp_path / place))
    assert models == {}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_models_error_comes_once_the_store_is_sound(
    data: Path, half: Path, tmp_path: Path
) -> None:
    """The real command, and a checkpoint that is none: of two errors the store's comes first."""
    arguments = ["build", "--data-dir", data, "--store", half, "--resume", "--device", "cpu"]
    arguments += [f"--model={name}={tmp_path / 'none'}" for name in ("clip_text", "blip2")]

    def run() -> str:
        command = [sys.executable, ROOT / "cli.py", *arguments]
        done = warm.run(command, capture_output=True, text=True)
        assert done.returncode in (1, 2), done
        said: str = done.stderr
        return said

    assert str(tmp_path / "none") in run()
    (half / "clip_text/c.0.0.0").unlink()
    found = run()
    assert "clip_text/c.0.0.0 (chunk 0) is damaged: the file is missing" in found
    assert str(tmp_path / "none") not in found


# A disk that is too small ---------------------------------------------------------------------


def test_a_build_is_refused_before_anything_is_created(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    found = FeatureStore(golden)
    needed = store_bytes(found.spec, found.samples)
    monkeypatch.setattr(space, "free_bytes", lambda _: needed - 1)
    with loaded(), pytest.raises(StorageFullError) as caught:
        build(config(data, store))
    message = str(caught.value)
    assert f"{needed:,} bytes" in message
    assert f"{needed - 1:,} free" in message
    assert "Free some space" in message
    assert len(message.splitlines()) <= 4
    assert (caught.value.bytes, caught.value.path) == (needed, store)
    assert not store.exists()
    monkeypatch.setattr(space, "free_bytes", lambda _: needed)
    make(data, store)
    COUNTS["ENOSPC"] += 1


def test_what_is_there_already_is_counted(
    data: Path, golden: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FeatureStore(half)
    whole = store_bytes(found.spec, found.samples)
    done = set(found.ledger.committed)
    left = missing_bytes(found.spec, found.samples, half, done)
    chunks = sum(
        entry.stat().st_size
        for name in DIMS
        for c in done
        for entry in (half / name / f"c.{c}.0.0", half / f"records/moments/{name}/c.{c}.0.0")
    )
    assert 0 < left < whole - chunks
    # What a killed build left of the next chunk is written over.
    size = found.spec.feature("clip_text").file_bytes
    for name in ("c.2.0.0", "c.3.0.0.partial"):
        (half / "clip_text" / name).write_bytes(bytes(size))
    assert missing_bytes(found.spec, found.samples, half, done) == left - 2 * size
    monkeypatch.setattr(space, "free_bytes", lambda _: left - 2 * size - 1)
    before = tree_digest(half)
    with loaded(), pytest.raises(StorageFullError, match="Nothing that was committed is lost"):
        build(config(data, half, resume=True))
    assert tree_digest(half) == before
    monkeypatch.setattr(space, "free_bytes", lambda _: left - 2 * size)
    recovers(data, half, golden)
    monkeypatch.setattr(space, "free_bytes", lambda _: 0)
    make(data, half, resume=True)  # nothing to do takes nothing


def test_what_is_deleted_before_is_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    make(data, store)
    monkeypatch.setattr(space, "free_bytes", lambda _: 5000)
    make(data, store, overwrite=True)
    monkeypatch.setattr(space, "free_bytes", lambda _: 0)
    before = tree_digest(store)
    with loaded(), pytest.raises(StorageFullError, match="in what would be deleted"):
        build(config(data, store, overwrite=True, views=2 * VIEWS))
    assert tree_digest(store) == before


def test_a_compressed_store_is_warned_of_only(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.build.free_bytes", lambda _: 10)
    said: list[str] = []

    def note(event: str, facts: Any) -> None:
        if event == "started":
            said.extend(facts["notices"])

    make(data, tmp_path / "store", (note,), codec="zstd")
    assert any("before compression, and 10 are free" in line for line in said)


def test_a_file_system_that_does_not_say_is_no_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network and FUSE file systems report no size at all."""
    assert (free_bytes(tmp_path / "not/there/yet") or 0) > 0
    honest = os.statvfs(tmp_path)
    silent = os.statvfs_result([*honest[:2], 0, 0, 0, *honest[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: silent)
    assert free_bytes(tmp_path) is None
    space.require_space(tmp_path, 1 << 60)


@needs_mounts
def test_a_real_disk_that_is_too_small(mounted: Bench) -> None:  # noqa: F811
    """Whatever is free, a build is refused before it begins, or it fits."""
    store, refused, needed = Path("/mnt/small/store"), 0, 0
    for pages in range(0, 400, 1 if NIGHTLY else 4):
        prepared: list[tuple[str, Any]] = [("erase", str(store)), ("fill", ["/mnt/small", 0])]
        prepared += [("remove", "/mnt/small/filling"), ("fill", ["/mnt/small", pages * 4096])]
        assert mounted.run(prepared).kind == "done"
        run = mounted.run([mounted.build(store)])
        if run.kind == "done":
            break
        if "free" in run.message:  # it was foreseen
            assert run.type == "StorageFullError", run
            assert mounted.value(("list", "/mnt/small")) == ["filling"], run
            assert run.bytes is not None
            refused, needed = refused + 1, run.bytes
            continue
        assert pages * 4096 >= needed > 0, run  # folders and blocks that are filled in part
        assert run.type == "StorageFullError", run
    else:
        raise AssertionError("it never fitted")
    assert refused > 3, run
    COUNTS["disk really full"] += refused
    for step in (("erase", str(store)), ("remove", "/mnt/small/filling")):
        mounted.value(step)


# No locks -------------------------------------------------------------------------------------


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def lockless(request: Any, bench: Bench) -> Callable[..., dict[str, Any]]:
    """Runs a command in a process where ``flock`` is missing."""
    COUNTS["no flock"] += 1

    def run(step: tuple[str, Any]) -> dict[str, Any]:
        done = bench.run([step], flock=request.param)
        assert done.kind == "done", done
        result: dict[str, Any] = done.values[0]
        return result

    return run


def typed(*arguments: Any) -> tuple[str, list[str]]:
    return "command", [str(a) for a in arguments]


def dead_holder(store: Path) -> None:
    """What a process that is gone left in the lock's file."""
    (store / LOCK).write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))


def test_a_complete_store_without_locks(
    lockless: Callable[..., dict[str, Any]], bench: Bench, store: Path, tmp_path: Path
) -> None:
    """It is complete, whoever is named in the lock: watched to its end, and exported."""
    shutil.copytree(bench.golden_store, store)
    dead_holder(store)
    done = lockless(typed("status", "--store", store, "--watch"))
    assert (done["code"], done["stdout"]) == (0, "11/11 samples, 1 bad input, complete\n"), done
    done = lockless(typed("status", "--store", store))
    assert done["code"] == 0
    assert "being written" not in done["stdout"]
    for more in (["export", "--format", "npy"], ["materialize"]):
        out = tmp_path / more[0]
        done = lockless(typed(*more, "--store", store, "--out-dir", out))
        assert done["code"] == 0, done
        assert any(path.suffix == ".npy" for path in out.iterdir())


def test_an_unfinished_store_without_locks(
    lockless: Callable[..., dict[str, Any]], bench: Bench, half: Path, tmp_path: Path
) -> None:
    """Nobody can tell whether it is being written, and that is what is said."""
    dead_holder(half)
    done = lockless(typed("status", "--store", half))
    assert done["code"] == 0
    assert "whether a process is writing to it is unknown" in done["stdout"]
    facts = json.loads(lockless(typed("status", "--store", half, "--json"))["stdout"])
    assert (facts["lock"], facts["holders"], facts["running"]) == ("unknown", [], False)
    before = tree_digest(half)
    for store, more in ((half, "--resume"), (half, "--overwrite"), (tmp_path / "new", "--resume")):
        done = lockless(bench.command(store, more))
        assert done["code"] == 1, done
        assert "its file system has no file locks" in done["stderr"]
        assert "on another file system" in done["stderr"]
        assert "loading" not in done["stderr"]
        assert len(done["stderr"].splitlines()) <= 3
    assert tree_digest(half) == before
    assert not (tmp_path / "new").exists()


def test_a_watch_ends_where_nobody_can_tell(
    data: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    dead_holder(half)
    monkeypatch.setattr(fcntl, "flock", missing)
    assert lock_holder(half / LOCK) is UNKNOWN
    assert lock_holder(half / "none") is None
    looks = list(watch(half, every_s=0.0, still_s=0.1))
    assert len(looks) > 1
    assert [look.ended for look in looks[:-1]] == [""] * (len(looks) - 1)
    assert looks[-1].ended == "unknown"
    assert not Looker(half).look().running
    with pytest.raises(StorageError, match="no file locks"):
        FileLock(half / LOCK, half)
    FileLock(half / LOCK, half, required=False).release()


def test_a_lock_that_another_user_closed(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.open

    def closed(path: Any, *more: Any, **options: Any) -> int:
        if Path(path) == half / LOCK:
            raise PermissionError(errno.EACCES, "Permission denied")
        return honest(path, *more, **options)

    monkeypatch.setattr(os, "open", closed)
    assert lock_holder(half / LOCK) is UNKNOWN


# No sync of folders ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "continues"),
    [("EINVAL", True), ("EOPNOTSUPP", True), ("ENOSYS", True), ("EIO", False), ("EBADF", False)],
)
def test_folders_that_cannot_be_synced(
    bench: Bench, store: Path, name: str, continues: bool
) -> None:
    """One warning and the same store; a sync that failed is an error still."""
    [done] = bench.run([bench.command(store)], folder_sync=name).values
    COUNTS["no sync of folders"] += 1
    warned = [line for line in done["stderr"].splitlines() if line.startswith("Warning: ")]
    if not continues:
        assert done["code"] == 1, done
        assert os.strerror(getattr(errno, name)) in done["stderr"]
        assert warned == []
        return
    assert done["code"] == 3, done  # one of the samples is bad
    assert len(warned) == 1, done
    assert "cannot sync folders" in warned[0]
    assert str(store.parent) in warned[0]
    assert different(tree_digest(store), bench.golden) == {}


def test_the_warning_is_typed_and_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    def unsynced(operation: str, path: Path, size: int) -> int:
        if operation == "fsync" and path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        return size

    monkeypatch.setattr(durable, "hook", unsynced)
    monkeypatch.setattr(durable, "_warned", False)
    with pytest.warns(UnsyncedFolderWarning) as caught:
        durable.replace_files([(tmp_path / "a/a", [b"x"]), (tmp_path / "b/b", [b"y"])])
    assert len(caught) == 1
    assert (tmp_path / "b/b").read_bytes() == b"y"


# Permissions ----------------------------------------------------------------------------------


# Modes that are fixed to those of another mask differ for the first one.
@pytest.mark.parametrize(
    "mask", [0o002, *(pytest.param(mask, marks=pytest.mark.nightly) for mask in (0o077, 0o022))]
)
def test_the_umask_decides_and_nothing_else(
    bench: Bench, store: Path, tmp_path: Path, mask: int
) -> None:
    """Every file and folder of a store, its labels, its published files and exports."""
    out = tmp_path / "out"
    steps = [
        bench.command(store),
        typed("materialize", "--store", store, "--out-dir", out / "files"),
        typed("labels", "--data-dir", bench.data, "--out-dir", out / "labels"),
        typed("report", "--store", store, "--out", out / "report.html"),
    ]
    steps += [
        typed("export", "--store", store, "--out-dir", out / name, "--format", name)
        for name in ("npy", "hf", "parquet", "webdataset", "safetensors")
    ]
    done = bench.run(steps, umask=mask)
    assert [value["code"] for value in done.values] == [3, *[0] * 8], done
    found = [store, out, *store.rglob("*"), *out.rglob("*")]
    assert len([p for p in found if p.is_file()]) > 40
    wrong = {
        str(p.relative_to(tmp_path)): oct(p.stat().st_mode & 0o777)
        for p in found
        if stat.S_IMODE(p.stat().st_mode) != (0o777 if p.is_dir() else 0o666) & ~mask
    }
    assert wrong == {}


@pytest.mark.skipif(
    os.getuid() != 0 or not is_mapped(GROUP + 2), reason="there is no other user to be"
)
@pytest.mark.parametrize(("mask", "code"), [(0o002, 3), (0o022, 1)])
def test_two_users_of_a_group_share_a_store(bench: Bench, mask: int, code: int) -> None:
    """One begins it, the other takes its lock and adds views; the umask may keep that from it."""
    folder = Path(tempfile.mkdtemp(prefix="shared-", dir="/tmp"))
    try:
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2775)
        shutil.copytree(bench.data, folder / "data")
        shutil.copy(bench.tokenizer, folder)
        store, step = folder / "store", ("--data-dir", str(folder / "data"))

        def build_as(uid: int, *more: str) -> dict[str, Any]:
            # Another user cannot import what root has installed: a build before does.
            with tempfile.TemporaryDirectory() as other:
                warm = bench.command(Path(other) / "store")
                steps = [warm, ("become", [uid, GROUP]), bench.command(store, *step, *more)]
                result: dict[str, Any] = bench.run(steps, umask=mask).values[2]
                return result

        first = build_as(GROUP + 1)
        assert first["code"] == 3, first
        second = build_as(GROUP + 2, "--resume", "--views", "16")
        assert second["code"] == code, second
        if code == 1:
            assert "Permission denied" in second["stderr"]
            assert "loading" not in second["stderr"]
        assert verify(store).findings == []
        assert FeatureStore(store).spec.views == (16 if code == 3 else bench.views)
    finally:
        shutil.rmtree(folder)
