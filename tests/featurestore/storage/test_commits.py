"""Records: several writers of one store, and the seal that turns records into lines."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import ChunkConflictError, CorruptStoreError, StoreLockedError
from featurestore.storage.commits import COMMITS, record_name
from featurestore.storage.files import LocalFiles, writer_name
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import LOCK, FeatureStore
from featurestore.storage.writer import SharedWriter, StoreWriter, take_lock
from featurestore.system import durable
from featurestore.system.locks import FileLock, WorkerHolder, lock_holders
from tests.featurestore import kills
from tests.featurestore.kills import killed_at
from tests.featurestore.stores import (
    commit,
    make_records,
    make_rows,
    make_store,
    tree,
)

pytestmark = pytest.mark.usefixtures("unsynced")
# Chunks of the stores of these tests.
CHUNKS = 6


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The store that one writer makes."""
    make_store(tmp_path / "golden", samples=22)
    assert FeatureStore(tmp_path / "golden").spec.chunks == CHUNKS
    return tmp_path / "golden"


def empty(path: Path) -> Path:
    """The same store without chunks."""
    make_store(path, samples=22, chunks=[])
    return path


def join(path: Path) -> SharedWriter:
    """A worker of a store."""
    return SharedWriter.of(FeatureStore(path), take_lock(path, worker=True, shared=True))


def write(writer: StoreWriter, chunks: Sequence[int]) -> None:
    commit(writer, chunks, make_rows(writer.spec), make_records(writer.spec))


def test_two_workers_and_a_seal_make_the_store_of_one_writer(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    write(first, [0, 2, 4])
    write(second, [5, 3, 1])
    assert (path / Ledger.FILE).read_bytes() == b""
    assert sorted(p.name for p in (path / COMMITS).iterdir()) == [f"{c:08d}" for c in range(6)]
    for writer in (first, second):
        writer.refresh()
        assert writer.complete
    assert first.alone() is None  # the second one still writes
    alone = second.alone()
    assert alone is not None
    alone.finish()
    alone.close()
    assert tree(path) == tree(golden)


def test_a_record_is_the_line_of_the_ledger(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    write(join(path), [4])
    lines = (golden / Ledger.FILE).read_bytes().splitlines()
    assert (path / record_name(4)).read_bytes() == lines[4]


def test_readers_see_records_and_lines(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(path, samples=22, chunks=[3, 0])
    write(join(path), [5, 1])
    store, complete = FeatureStore(path), FeatureStore(golden)
    assert store.ledger.committed == [0, 1, 3, 5]
    assert store.ledger.missing == [2, 4]
    assert not store.complete
    for chunk in store.ledger.committed:
        assert list(store.ledger[chunk].samples) == list(complete.ledger[chunk].samples)
        np.testing.assert_array_equal(
            store.read_chunk("clip_image", chunk), complete.read_chunk("clip_image", chunk)
        )


def test_the_same_chunk_twice_is_one_chunk(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    write(first, range(CHUNKS))
    written = {p: p.stat().st_ino for p in path.rglob("c.*")}
    write(second, range(CHUNKS))
    assert {p: p.stat().st_ino for p in path.rglob("c.*")} == written  # readers may have mapped it
    first.close()
    alone = second.alone()
    assert alone is not None
    assert tree(path) == tree(golden)


def test_other_bytes_for_a_committed_chunk_are_refused(tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    write(first, [0, 1])
    before = tree(path)
    rows = make_rows(second.spec)
    rows["clip_image"][5, 0, 0] += 1e-3
    with pytest.raises(ChunkConflictError, match="Chunk 1 was made twice with different") as caught:
        commit(second, [1], rows, make_records(second.spec))
    assert caught.value.chunk == 1
    assert tree(path) == before


def test_other_bytes_are_found_although_the_other_one_is_faster_by_an_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker commits between the second one's look and its record."""
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    put = LocalFiles.put_all

    def slow(files: LocalFiles, contents: object) -> None:
        monkeypatch.setattr(LocalFiles, "put_all", put)
        put(files, contents)  # type: ignore[arg-type]
        write(first, [2])

    monkeypatch.setattr(LocalFiles, "put_all", slow)
    rows = make_rows(second.spec, seed=1)
    with pytest.raises(ChunkConflictError):
        commit(second, [2], rows, make_records(second.spec))


def test_the_first_result_stays_where_versions_may_differ(tmp_path: Path) -> None:
    """Workers of other versions, which the user has allowed, may build the same chunk."""
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    write(first, [0, 1])
    before = tree(path)
    rows, records = make_rows(second.spec, seed=1), make_records(second.spec)
    of = second.spec.samples_of(1)
    part = {name: block[of.start : of.stop] for name, block in rows.items()}
    changed = {"version.torch": "2.13.0 -> 9.9.9"}
    second.commit_chunk(1, part, records[of.start : of.stop], changed)
    assert tree(path) == before


def test_a_worker_that_wakes_after_the_seal(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    late = join(path)
    with StoreWriter(path, unlocked(path)) as writer:
        write(writer, range(CHUNKS))
        writer.finish()
    write(late, [2])
    assert tree(path) == tree(golden)
    rows = make_rows(late.spec, seed=1)
    with pytest.raises(ChunkConflictError, match=r"ledger\.jsonl holds the first result"):
        commit(late, [3], rows, make_records(late.spec))
    assert tree(path) == tree(golden)


def test_a_late_record_is_removed_by_the_next_writer(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(golden, path)
    line = (golden / Ledger.FILE).read_bytes().splitlines()[1]
    LocalFiles(path, writer_name()).create(record_name(1), line)
    assert FeatureStore(path).complete
    with StoreWriter(path, take_lock(path)):
        pass
    assert tree(path) == tree(golden)


def unlocked(path: Path) -> FileLock:
    """A lock of a file system that has no locks."""
    lock = take_lock(path, worker=True, shared=True)
    lock.exists = False
    return lock


def test_a_builder_alone_continues_what_workers_began(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    with join(path) as writer:
        write(writer, [5, 2])
    with StoreWriter(path, take_lock(path)) as writer:
        assert writer.ledger.committed == [2, 5]
        assert not (path / COMMITS).exists()
        write(writer, [0, 1, 3, 4])
        writer.finish()
    assert tree(path) == tree(golden)


def test_the_seal_is_killed_at_every_operation(golden: Path, tmp_path: Path) -> None:
    made = empty(tmp_path / "made")
    with join(made) as writer:
        write(writer, [5, 2, 0, 1, 4, 3])
    at = 0
    was_killed = True
    while was_killed:
        path = tmp_path / f"at {at}"
        shutil.copytree(made, path)
        at += 1
        was_killed = killed_at(at, kills.seal, path)
        assert FeatureStore(path).complete, at
        with StoreWriter(path, take_lock(path)) as writer:
            writer.finish()
        assert tree(path) == tree(golden), at
        shutil.rmtree(path)
    assert at > 2 * CHUNKS


def test_a_commit_is_killed_at_every_operation(tmp_path: Path) -> None:
    """Another worker builds the chunk again; nothing is swept while workers may be running."""
    at = 0
    was_killed = True
    while was_killed:
        path = empty(tmp_path / f"at {at}")
        at += 1
        was_killed = killed_at(at, kills.record_chunk, path, 1)
        with join(path) as other:
            write(other, [1, 0])
            assert other.ledger.committed_now() == {0, 1}
        with StoreWriter(path, take_lock(path)) as writer:
            assert writer.ledger.committed == [0, 1]
        assert not list(path.rglob("*.partial")), at
        shutil.rmtree(path)
    assert at > 10


def test_a_record_that_disappears_is_a_line_by_then(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader lists the records, and the store is sealed before it reads them."""
    path = empty(tmp_path / "store")
    with join(path) as writer:
        write(writer, range(CHUNKS))
    names = LocalFiles.names

    def late(files: LocalFiles, folder: str) -> list[str]:
        found = names(files, folder)
        monkeypatch.setattr(LocalFiles, "names", names)
        StoreWriter(path, take_lock(path)).close()
        return found

    monkeypatch.setattr(LocalFiles, "names", late)
    assert FeatureStore(path).complete
    assert tree(path) == tree(golden)


@pytest.mark.parametrize("damage", ["flip", "empty", "other chunk"])
def test_a_damaged_record_is_damage(tmp_path: Path, damage: str) -> None:
    path = empty(tmp_path / "store")
    with join(path) as writer:
        write(writer, [1, 2])
    record = path / record_name(1)
    data = record.read_bytes()
    changed = {"flip": data[:9] + b"9" + data[10:], "empty": b""}
    record.write_bytes(changed.get(damage, (path / record_name(2)).read_bytes()))
    with pytest.raises(CorruptStoreError, match=r"records/commits/00000001 \(chunk 1\)"):
        FeatureStore(path)


def test_dropped_chunks_have_no_record(golden: Path, tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    with join(path) as writer:
        write(writer, range(CHUNKS))
    with StoreWriter(path, take_lock(path)) as writer:
        writer.ledger.drop([1, 4])
        assert FeatureStore(path).ledger.missing == [1, 4]
    with join(path) as writer:
        write(writer, [4, 1])
    with StoreWriter(path, take_lock(path)):
        pass
    assert tree(path) == tree(golden)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    monkeypatch.setattr(os, "link", refuse)
    write(first, [0, 1, 2, 3])
    write(second, [3, 4, 5])
    with pytest.raises(ChunkConflictError):
        commit(second, [1], make_rows(second.spec, seed=1), make_records(second.spec))
    first.close()
    assert second.alone() is not None
    assert tree(path) == tree(golden)


def test_the_answer_to_a_successful_link_is_lost(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system repeats the request, and says that the file exists."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    path = empty(tmp_path / "store")
    writer = join(path)
    monkeypatch.setattr(os, "link", twice)
    write(writer, range(CHUNKS))
    assert writer.alone() is not None
    assert tree(path) == tree(golden)


def test_other_link_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(Exception, match="no space left"):
        durable.create_file(tmp_path / "file", b"x", writer_name())
    assert not list(tmp_path.iterdir())


def test_workers_keep_everybody_else_out(tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    first, second = join(path), join(path)
    holders = lock_holders(path / LOCK)
    assert isinstance(holders, list)
    assert all(isinstance(holder, WorkerHolder) for holder in holders)
    assert {holder.pid for holder in holders} == {os.getpid()}
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on {os.uname().nodename}"):
        take_lock(path)
    first.close()
    with pytest.raises(StoreLockedError):
        take_lock(path)
    second.close()
    take_lock(path).release()


def test_a_shared_lock_waits_for_the_creator(tmp_path: Path) -> None:
    path = empty(tmp_path / "store")
    lock = take_lock(path, worker=True)
    with pytest.raises(StoreLockedError):
        take_lock(path, worker=True, shared=True)
    lock.share()
    take_lock(path, worker=True, shared=True).release()
    lock.release()


def test_temporary_files_have_the_name_of_their_writer() -> None:
    name = writer_name()
    assert name != writer_name()
    for target in ("c.3.0.0", "zarr.json", "00000012"):
        assert durable.target_name(f"{target}.{name}.partial") == target
        assert durable.target_name(f"{target}.partial") == target
        assert durable.target_name(target) == target


def reads_of(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    honest = LocalFiles.read

    def read(files: LocalFiles, name: str, start: int = 0, size: int = -1) -> bytes:
        names.append(name)
        return honest(files, name, start, size)

    patch.setattr(LocalFiles, "read", read)
    return names


def test_a_refresh_reads_new_records_alone(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    make_store(path, samples=22, chunks=[3])
    writer = join(path)
    write(writer, [0, 5])
    reader = Ledger(LocalFiles(path), CHUNKS, 4)
    write(writer, [2, 1])
    names = reads_of(monkeypatch)
    reader.refresh()
    assert sorted(names) == [record_name(1), record_name(2)]
    names.clear()
    reader.refresh()
    assert names == []
    assert reader.committed == [0, 1, 2, 3, 5]
    complete = FeatureStore(golden).ledger
    assert reader.entries == [complete[chunk] for chunk in reader.committed]


def test_a_refresh_sees_what_changes_that_need_the_lock_alone_have_left(
    golden: Path, tmp_path: Path
) -> None:
    """A seal; chunks that are dropped, and built again; a repair that was killed halfway."""
    path = empty(tmp_path / "store")
    writer = join(path)
    write(writer, [0, 4, 1])
    reader = Ledger(LocalFiles(path), CHUNKS, 4)
    alone = writer.alone()
    assert alone is not None
    reader.refresh()
    assert (reader.committed, list(reader.recorded)) == ([0, 1, 4], [])
    alone.ledger.drop([4])
    alone.close()
    reader.refresh()
    assert reader.committed == [0, 1]
    with join(path) as again:
        write(again, [4, 5])
    reader.refresh()
    assert reader.committed == [0, 1, 4, 5]
    (path / record_name(5)).unlink()
    with join(path) as again:
        write(again, [2])
    reader.refresh()
    assert reader.committed == [0, 1, 2, 4]
    complete = FeatureStore(golden).ledger
    assert reader.entries == [complete[chunk] for chunk in reader.committed]


def test_a_record_that_a_seal_removes_during_a_refresh_is_a_line_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = empty(tmp_path / "store")
    writer = join(path)
    write(writer, [0])
    reader = Ledger(LocalFiles(path), CHUNKS, 4)
    write(writer, range(1, CHUNKS))
    honest = LocalFiles.read

    def read(files: LocalFiles, name: str, start: int = 0, size: int = -1) -> bytes:
        if name == record_name(3):
            monkeypatch.setattr(LocalFiles, "read", honest)
            alone = writer.alone()
            assert alone is not None
            alone.close()
        return honest(files, name, start, size)

    monkeypatch.setattr(LocalFiles, "read", read)
    reader.refresh()
    assert reader.complete
    assert list(reader.recorded) == []
