"""Real disks: full to the last byte, read-only, slow with signals, in odd places, or taken away.

The sweeps inject errors where the product calls the system; here the kernel itself refuses, on
small file systems that are mounted in a namespace of the zygote's own.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from featurestore.errors import (
    BadSampleError,
    CorruptStoreError,
    ManyViewsError,
    StorageError,
    StorageFullError,
)
from featurestore.storage.store import FeatureStore
from featurestore.system import durable
from featurestore.system.durable import replace_file
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from producers.sources.files import read_capped
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.faults.fakes import (
    CHUNK,
    VIEWS,
    committed,
    config,
    loaded,
    make,
    make_data,
    recovers,
)
from tests.faults.harness import (
    COUNTS,
    Bench,
    Zygote,
    different,
    namespaces_allowed,
)

PAGE = 4096
# In the namespace: a disk of 2 MiB, one of few files, and one that cannot be written.
MOUNTS = (
    "mount -t tmpfs tmpfs /mnt && mkdir /mnt/small /mnt/few /mnt/fixed"
    " && mount -t tmpfs -o size=2m tmpfs /mnt/small"
    " && mount -t tmpfs -o nr_inodes=25 tmpfs /mnt/few"
    " && mount -t tmpfs -o ro tmpfs /mnt/fixed"
)
needs_mounts = pytest.mark.skipif(
    not namespaces_allowed(), reason="this machine mounts nothing in a user namespace"
)


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    zygote = Zygote(MOUNTS)
    yield Bench(tmp_path_factory.mktemp("mounted"), zygote)
    zygote.close()


# A full disk ---------------------------------------------------------------------------------


@needs_mounts
@pytest.mark.parametrize("part", range(2 if NIGHTLY else 1))
def test_a_real_disk_that_is_full_but_for_n_pages(mounted: Bench, part: int) -> None:
    """One page more each time, until the build fits; then space is freed, and it resumes."""
    store, refused = Path("/mnt/small/store"), 0
    for pages in range(part, 400, 2 if NIGHTLY else 8):
        prepared: list[tuple[str, Any]] = [("erase", str(store)), ("fill", ["/mnt/small", 0])]
        prepared += [("remove", "/mnt/small/filling"), ("fill", ["/mnt/small", pages * PAGE])]
        assert mounted.run(prepared).kind == "done"
        run = mounted.run([mounted.build(store)], unforeseen=True)
        if run.kind == "done":
            break
        refused += 1
        assert run.type == "StorageFullError", run
        assert "no space left" in run.message, run
        assert isinstance(run.bytes, int), run
        assert Path(run.path).is_relative_to("/mnt/small"), run
        assert mounted.value(("partials", str(store))) == [], run
        steps = [("remove", "/mnt/small/filling"), mounted.build(store, resume=True)]
        again = mounted.run([*steps, ("verify", str(store)), ("digest", str(store))])
        assert again.kind == "done", again
        assert again.values[2] == [], again
        assert different(again.values[3], mounted.golden) == {}, again
    else:
        raise AssertionError("it never fitted")
    assert refused > 3
    COUNTS["disk really full"] += refused
    found = mounted.run([("digest", str(store)), ("erase", str(store))]).values[0]
    assert different(found, mounted.golden) == {}
    mounted.value(("remove", "/mnt/small/filling"))


@needs_mounts
def test_a_disk_without_room_for_another_file(mounted: Bench) -> None:
    """Bytes are free and inodes are not: the same error, and no damage."""
    store = Path("/mnt/few/store")
    run = mounted.run([mounted.build(store)])
    assert run.type == "StorageFullError", run
    COUNTS["no inode left"] += 1
    assert mounted.value(("partials", str(store))) == []
    mounted.value(("erase", str(store)))


def test_a_line_of_the_ledger_that_finds_no_room_is_no_commit(
    bench: Bench, tmp_path: Path, store: Path
) -> None:
    """The disk is full in the middle of a line: the partial line is truncated again."""
    log = tmp_path / "operations.json"
    assert bench.run([bench.build(store)], record=str(log)).kind == "done"
    written = [o["path"] for o in json.loads(log.read_bytes()) if o["op"] == "write"]
    lines = [n for n, path in enumerate(written, 1) if path.endswith("ledger.jsonl")]
    assert len(lines) == 3
    for number, n in enumerate(lines):
        shutil.rmtree(store)
        run = bench.run(
            [bench.build(store)],
            fault={"n": n, "action": "ENOSPC", "only": ["write"], "torn": True},
        )
        assert "ledger.jsonl" in run.where, run
        assert run.fired == 2, run  # a short write, and then the error
        assert run.type == "StorageFullError", run
        data = (store / "records/ledger.jsonl").read_bytes()
        assert data == b"" or data.endswith(b"\n")
        assert data.count(b"\n") == number
        bench.recover(store, run)
        COUNTS["ledger line torn by a full disk"] += 1


# Disks that refuse ---------------------------------------------------------------------------


@needs_mounts
def test_a_disk_that_cannot_be_written(mounted: Bench) -> None:
    run = mounted.run([mounted.command(Path("/mnt/fixed/store"))])
    assert run.values[0]["code"] == 1, run
    assert "Read-only file system" in run.values[0]["stderr"]
    assert "Traceback" not in run.values[0]["stderr"]
    assert len(run.values[0]["stderr"].splitlines()) <= 6
    COUNTS["read-only disk"] += 1


@needs_mounts
def test_the_temporary_folder_may_be_on_another_disk(mounted: Bench) -> None:
    """Temporary files are beside their targets: no rename crosses a file system."""
    store, log = Path("/mnt/small/store"), mounted.folder / "operations.json"
    devices = [mounted.value(("device", d)) for d in ("/mnt/small", tempfile.gettempdir())]
    assert devices[0] != devices[1]
    run = mounted.run([mounted.build(store), ("digest", str(store))], record=str(log))
    assert run.kind == "done", run
    assert different(run.values[1], mounted.golden) == {}
    operations = json.loads(log.read_bytes())
    assert {o["op"] for o in operations} >= {"open", "write", "rename"}
    assert all(Path(o["path"]).is_relative_to("/mnt/small") for o in operations)
    mounted.value(("erase", str(store)))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("n" * 300, "name too long"), ("/".join(["p" * 250] * 20), "name too long")],
    ids=["name", "path"],
)
def test_a_path_that_is_too_long(bench: Bench, tmp_path: Path, name: str, problem: str) -> None:
    run = bench.run([bench.command(tmp_path / name)])
    assert run.values[0]["code"] in (1, 2), run
    assert problem in run.values[0]["stderr"].lower(), run
    assert "Traceback" not in run.values[0]["stderr"]
    COUNTS["name too long"] += 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ["EACCES", "EROFS", "EDQUOT", "ENOSPC", "EIO", "ENAMETOOLONG"])
def test_each_refusal_is_one_message_and_status_1(bench: Bench, store: Path, number: str) -> None:
    for n in (1, 30, 100):
        shutil.rmtree(store, ignore_errors=True)
        run = bench.fault(bench.command(store), n, number)
        assert run.fired == 1, run
        [ended] = run.values
        assert ended["code"] == 1, run
        assert ended["stdout"] == ""
        message = ended["stderr"].partition("Error: ")[2]
        assert str(store) in message, run
        assert "Nothing that was committed is lost." in message, run
        assert len(message.splitlines()) <= 4, run
        assert "Traceback" not in ended["stderr"], run
    bench.recover(store, number)


# Reading from /proc/self/mem at its beginning is a real EIO of a file that is a regular one.
UNREADABLE = Path("/proc/self/mem")


def test_a_file_of_the_store_that_cannot_be_read(bench: Bench, store: Path) -> None:
    """Every reader reports EIO with the file, and not as a missing chunk."""
    shutil.copytree(bench.golden_store, store)
    for file in ("clip_text/c.0.0.0", "records/ledger.jsonl", "zarr.json"):
        kept = (store / file).read_bytes()
        (store / file).unlink()
        (store / file).symlink_to(UNREADABLE)
        for reader in (verify, lambda path: FeatureStore(path).read_chunk("clip_text", 0)):
            with pytest.raises(StorageError, match="Input/output error") as caught:
                reader(store)
            assert caught.value.path == store / file
        # Its link has another size than the chunk, which is what a dataset looks at first.
        with pytest.raises((StorageError, CorruptStoreError), match=file.rpartition("/")[2]):
            FeatureDataset(store, checksum=True)
        (store / file).unlink()
        (store / file).write_bytes(kept)
        COUNTS["EIO on read"] += 1
    assert verify(store).findings == []


def test_an_input_that_cannot_be_read_is_a_bad_sample() -> None:
    with pytest.raises(BadSampleError, match="unreadable: Input/output error") as caught:
        read_capped(UNREADABLE, 1000)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO
    COUNTS["EIO on read"] += 1


def test_a_storm_of_signals_interrupts_nothing(bench: Bench, store: Path) -> None:
    """A timer signal every half millisecond interrupts every system call."""
    run = bench.run([bench.build(store), ("digest", str(store))], storm_s=0.0005)
    assert run.kind == "done", run
    assert run.fired > 20
    COUNTS["EINTR"] += run.fired
    assert different(run.values[1], bench.golden) == {}


# Odd places ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["with space", "東京 ﬁ", "line\nfeed", "caf\udce9", "-x", "%2e%2e", "a;b&c", "s" * 255]
)
def test_a_store_of_any_name(bench: Bench, tmp_path: Path, name: str) -> None:
    store = tmp_path / name
    run = bench.run([bench.command(store), bench.command(store, "--resume")])
    assert [value["code"] for value in run.values] == [3, 3], run  # one of the samples is bad
    assert "nothing to do" in run.values[1]["stderr"]
    assert different(tree_digest(store), bench.golden) == {}
    assert list(tmp_path.iterdir()) == [store]


def test_a_store_behind_a_link(bench: Bench, tmp_path: Path) -> None:
    """A link to a folder is followed; a link to a missing folder is refused and kept."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    run = bench.run([bench.command(tmp_path / "link"), bench.command(tmp_path / "dangling")])
    assert [value["code"] for value in run.values] == [3, 2], run
    assert "not a folder" in run.values[1]["stderr"]
    assert different(tree_digest(tmp_path / "real"), bench.golden) == {}
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_the_place_of_the_store_or_its_parent(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        run = bench.run([bench.command(path, "--overwrite")])
        assert run.values[0]["code"] in (1, 2), run
        assert "Traceback" not in run.values[0]["stderr"]
        assert str(tmp_path / "file") in run.values[0]["stderr"]
        assert (tmp_path / "file").read_text() == "years of work"


# In the thread that writes -------------------------------------------------------------------

ENDLESS = """
import os, time
from producers import decode
honest = decode.text

def text(data):
    if b'"w56 ' in data:
        open(__file__ + ".waits", "a").close()
        time.sleep(200)
    return honest(data)

decode.text = text
"""


def test_a_write_that_fails_is_told_while_a_sample_takes_for_ever(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full disk is reported at once, not after the sample's time limit."""
    site, store, failed = tmp_path / "site", tmp_path / "store", []
    site.mkdir()
    (site / "sitecustomize.py").write_text(ENDLESS)
    assert b'"w56 ' in (data / "0000008.json").read_bytes()  # the first of the third chunk

    def fail(operation: str, path: Path, size: int) -> int:
        if operation == "write" and path.name.startswith("c.1.0.0"):
            deadline = time.monotonic() + 100
            while not list(site.glob("*.waits")) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1)  # until nothing else is left to do
            failed.append(time.monotonic())
            raise OSError(errno.ENOSPC, "No space left on device")
        return size

    with monkeypatch.context() as patch, loaded():
        patch.setenv("PYTHONPATH", f"{site}:{ROOT}")
        patch.setattr(durable, "hook", fail)
        with pytest.raises(StorageFullError):
            build(config(data, store))
    assert len(failed) == 1
    assert time.monotonic() - failed[0] < 100
    COUNTS["ENOSPC"] += 1
    assert committed(store) == [0]
    recovers(data, store, golden)


def test_of_two_failures_at_once_none_is_lost(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone fails in a chunk, then the disk in the previous one, which is being written."""
    store, broken, rows = tmp_path / "store", threading.Event(), 0

    def act(_fake: Any, ids: Any, honest: Any) -> Any:
        nonlocal rows
        if rows == 2 * CHUNK * VIEWS:
            broken.set()
            raise ValueError("not today")
        rows += len(ids)
        return honest()

    def fail(operation: str, path: Path, size: int) -> int:
        if operation == "write" and path.name.startswith("c.1.0.0"):
            assert broken.wait(100)
            raise OSError(errno.EIO, "Input/output error")
        return size

    with monkeypatch.context() as patch, loaded({"clip_text": act}):
        patch.setattr(durable, "hook", fail)
        with pytest.raises(StorageError, match="Input/output error") as caught:
            build(config(data, store))
    [note] = caught.value.__notes__
    assert "clip_text failed on rows" in note
    assert "not today" in note
    COUNTS["EIO"] += 1
    assert committed(store) == [0]
    recovers(data, store, golden)


# Taken away ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("disk") / "data")


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    make(data, data.parent / "golden")
    return data.parent / "golden"


@pytest.mark.parametrize("part", ["", "clip_text", "records", "records/moments/blip2_text"])
def test_a_folder_of_the_store_that_is_deleted_meanwhile(
    data: Path, golden: Path, tmp_path: Path, part: str
) -> None:
    """The next chunk reports the missing store once; nothing is created in its place."""
    store, events = tmp_path / "store", []

    def delete(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "chunk":
            events.append(event)
            shutil.rmtree(store / part)

    with loaded(), pytest.raises(StorageError, match="No such file or directory") as caught:
        build(config(data, store), [delete])
    assert events == ["chunk"]
    assert Path(caught.value.path).is_relative_to(store)
    assert caught.value.exit_code == 1
    COUNTS["folder deleted"] += 1
    if not part:
        make(data, store, resume=True)
        assert tree_digest(store) == tree_digest(golden)
    else:
        assert not (store / part).exists()


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_data_folder_that_goes_away_meanwhile(tmp_path: Path, how: str) -> None:
    """An unmounted disk causes no bad samples: the build stops, and can be resumed later."""
    # More chunks than can be in flight when the second one is reported.
    data, store = make_data(tmp_path / "data", 9 * CHUNK), tmp_path / "store"
    golden, away = tmp_path / "golden", tmp_path / "away"
    make(data, golden)

    def unmount(event: str, facts: Mapping[str, Any]) -> None:
        if event == "chunk" and facts["chunk"] == 1:
            data.rename(away)
            if how == "emptied":
                data.mkdir()

    with loaded(), pytest.raises(StorageError, match="are gone") as caught:
        build(config(data, store), [unmount])
    assert str(data) in str(caught.value)
    assert caught.value.exit_code == 1
    COUNTS["data folder gone"] += 1
    assert 2 <= len(committed(store)) < 9
    assert FeatureStore(store).bad_inputs == []
    with loaded(), pytest.raises(ManyViewsError):
        build(config(data, store, resume=True))
    if how == "emptied":
        data.rmdir()
    away.rename(data)
    make(data, store, resume=True)
    assert tree_digest(store) == tree_digest(golden)


def test_a_target_that_became_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        replace_file(tmp_path / "target", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target"]
