import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurestore.errors import (
    CorruptStoreError,
    StorageError,
    StorageFullError,
    StoreLockedError,
)
from featurestore.system import contents, durable, removal
from featurestore.system.locks import FileLock, lock_holder

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILURES = (*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)


def fail_at(monkeypatch: pytest.MonkeyPatch, n: int, number: int) -> list[str]:
    """Makes operation ``n`` and no other fail; returns the list of operations as they happen."""
    seen: list[str] = []

    def fail(operation: str, path: Path, size: int) -> int:
        seen.append(operation)
        if len(seen) == n:
            raise OSError(number, os.strerror(number))
        return size

    monkeypatch.setattr(durable, "hook", fail)
    return seen


def partials(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*.partial")]


def until_it_passes(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    prepare: Callable[[], object],
    action: Callable[[], object],
    check: Callable[[str, StorageError], object],
) -> int:
    """Runs ``action`` with operation 1, 2, … failing until none is left; returns how many."""
    n = 0
    while True:
        n += 1
        monkeypatch.setattr(durable, "hook", durable._pass)
        prepare()
        seen = fail_at(monkeypatch, n, number)
        error = None
        try:
            action()
        except StorageError as e:
            error = e
        if error is None:
            assert len(seen) < n
            return n - 1
        assert isinstance(error, StorageFullError) == (number in FULL)
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == number
        assert len(str(error).splitlines()) <= 4
        check(seen[n - 1], error)


# --- whole files ---


@pytest.mark.parametrize("number", FAILURES)
def test_replace_file_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"

    def check(operation: str, error: StorageError) -> None:
        assert not partials(tmp_path)
        # Only the sync of the folder comes after the rename.
        renamed = operation == "fsync" and error.path == tmp_path
        assert path.read_bytes() == (b"new content" if renamed else b"old")
        if operation == "write":
            assert error.path == path
            assert getattr(error, "bytes", 11) == 11

    operations = until_it_passes(
        monkeypatch,
        number,
        lambda: path.write_bytes(b"old"),
        lambda: durable.replace_file(path, b"new content"),
        check,
    )
    assert operations == 5  # open, write, fsync, rename, fsync of the folder
    assert path.read_bytes() == b"new content"


@pytest.mark.parametrize("number", FAILURES)
def test_replace_files_renames_none_before_all_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    paths = [tmp_path / "a/x", tmp_path / "b/y", tmp_path / "a/z"]

    def prepare() -> None:
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"old")

    def check(operation: str, error: StorageError) -> None:
        assert not partials(tmp_path)
        contents = [path.read_bytes() for path in paths]
        assert set(contents) <= {b"old", b"new" + b"er"}
        if operation in ("open", "write") or (operation == "fsync" and error.path.is_file()):
            assert contents == [b"old"] * 3

    operations = until_it_passes(
        monkeypatch,
        number,
        prepare,
        lambda: durable.replace_files((p, [b"new", memoryview(b"er")]) for p in paths),
        check,
    )
    assert operations == 3 * 4 + 3 + 2  # each folder is synced once
    assert [path.read_bytes() for path in paths] == [b"newer"] * 3


@pytest.mark.parametrize("number", FAILURES)
def test_append_line_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "lines"
    until_it_passes(
        monkeypatch,
        number,
        lambda: path.write_bytes(b"one\n"),
        lambda: durable.append_line(path, b"two"),
        lambda operation, error: path.read_bytes() == b"one\n" or pytest.fail("torn"),
    )
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_failed_append_after_a_short_write_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    sizes = []

    def hook(operation: str, path: Path, size: int) -> int:
        if operation == "write":
            sizes.append(size)
            if len(sizes) == 2:
                raise OSError(errno.ENOSPC, "full")
            return 2
        return size

    monkeypatch.setattr(durable, "hook", hook)
    with pytest.raises(StorageFullError) as caught:
        durable.append_line(path, b"two")
    assert sizes == [4, 2]
    assert (caught.value.path, caught.value.bytes) == (path, 4)
    assert path.read_bytes() == b"one\n"


def test_append_needs_an_existing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        durable.append_line(tmp_path / "none", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [1, 3, 7])
def test_short_writes_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    writes = []

    def hook(operation: str, path: Path, size: int) -> int:
        if operation == "write":
            writes.append(size)
        return min(size, most)

    monkeypatch.setattr(durable, "hook", hook)
    data = bytes(range(50))
    durable.replace_file(tmp_path / "file", data)
    durable.append_line(tmp_path / "file", b"line")
    assert (tmp_path / "file").read_bytes() == data + b"line\n"
    assert len(writes) == -(-50 // most) + -(-5 // most)


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def hook(operation: str, path: Path, size: int) -> int:
        if operation == "fsync":
            synced.append(path)
            raise OSError(errno.EIO, "Input/output error")
        return size

    monkeypatch.setattr(durable, "hook", hook)
    with pytest.raises(StorageError, match="Input/output"):
        durable.replace_file(tmp_path / "file", b"x")
    assert len(synced) == 1
    assert list(tmp_path.iterdir()) == []


def test_everything_is_synced_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{fd}").readlink().name))
        real_fsync(fd)

    def hook(operation: str, path: Path, size: int) -> int:
        if operation == "rename":
            calls.append(("rename", path.name))
        return size

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durable, "hook", hook)
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder/file"
    durable.replace_file(path, b"x")
    one = [("fsync", "file.partial"), ("rename", "file"), ("fsync", "folder")]
    assert calls == one
    calls.clear()
    durable.append_line(path, b"y")
    durable.truncate(path, 1)
    assert calls == [("fsync", "file")] * 2
    calls.clear()
    removal.remove(path)
    durable.make_folder(tmp_path / "folder/inner")
    assert calls == [("fsync", "folder")] * 2


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with durable.open_replace(path) as file:
            file.write(b"half")
            assert (tmp_path / "file.partial").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_streamed_parts_and_size(tmp_path: Path) -> None:
    with durable.open_replace(tmp_path / "file") as file:
        for part in (b"ab", bytearray(b"cd"), memoryview(b"ef"), b""):
            file.write(part)
        assert file.size == 6
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"abcdef"


def test_a_partial_of_a_killed_writer_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"a long rest of an earlier run")
    durable.replace_file(tmp_path / "file", b"x")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"x")]


WRITER = """if True:
    import sys, time
    from pathlib import Path
    from featurestore.system.durable import PartialFile
    file = PartialFile(Path(sys.argv[1]))
    file.write(b"the other's")
    print("open", flush=True)
    sys.stdin.readline()
    file.sync()
    file.rename()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_file_has_one_writer(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreLockedError, match="file is being written by another process"):
            durable.replace_file(path, b"ours")
        if killed:
            other.kill()
        other.communicate(b"\n")
    assert path.exists() is not killed
    assert killed or path.read_bytes() == b"the other's"
    durable.replace_file(path, b"ours")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"ours")]


def test_a_file_renamed_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the temporary name, its writer renames it."""
    path, honest = tmp_path / "file", fcntl.flock
    first = durable.PartialFile(path)
    first.write(b"first")

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", honest)
        first.rename()
        honest(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with durable.open_replace(path) as second:
        assert path.read_bytes() == b"first"
        second.write(b"second")
    assert path.read_bytes() == b"second"


def test_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    (tmp_path / "lines").write_bytes(b"")
    actions: list[Callable[[], object]] = [
        lambda: durable.replace_files([(tmp_path / "a", [b"x"]), (tmp_path / "b", [b"y"])]),
        lambda: durable.append_line(tmp_path / "lines", b"x"),
        lambda: durable.truncate(tmp_path / "lines", 0),
    ]
    before = held()
    for n in range(1, 30):
        fail_at(monkeypatch, n, errno.EIO)
        for action in actions:
            try:
                action()
            except StorageError:
                continue
    assert held() == before


# --- real failures ---


def test_a_really_full_device(tmp_path: Path) -> None:
    (tmp_path / "lines").symlink_to("/dev/full")
    with pytest.raises(StorageFullError, match=r"6 bytes to .*lines: no space left") as caught:
        durable.append_line(tmp_path / "lines", b"12345")
    assert caught.value.bytes == 6


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    # The kernel really writes short here, then fails; the limit binds only the child.
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        from featurestore.errors import StorageError
        from featurestore.system import durable
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            durable.replace_file(Path(sys.argv[1]), bytes(1500))
        except StorageError as e:
            print(e.path.name, e.__cause__.errno)
        Path(sys.argv[1]).with_name("small").write_bytes(b"kept")
    """
    (tmp_path / "file").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["file", str(errno.EFBIG)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "small"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "too long"), ("missing/file", "No such file"), ("file/below", "Not a directory")],
)
def test_invalid_paths_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match=f"(?i){reason}"):
        durable.replace_file(tmp_path / name, b"x")


# --- folders, removal, reading ---


def test_make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = []
    monkeypatch.setattr(durable, "hook", lambda op, path, size: operations.append((op, path.name)))
    durable.make_folder(tmp_path / "a/b")
    durable.make_folder(tmp_path / "a/b")
    assert [name for op, name in operations if op == "mkdir"] == ["a", "b"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="exists"):
        durable.make_folder(tmp_path / "file")
    with pytest.raises(StorageError):
        durable.make_folder(tmp_path / "file/below")


def test_remove_folder_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_bytes(b"x")
    (tmp_path / "gone/deep/er").mkdir(parents=True)
    (tmp_path / "gone/deep/file").write_bytes(b"x")
    (tmp_path / "gone/link").symlink_to(tmp_path / "outside")
    (tmp_path / "gone/dangling").symlink_to(tmp_path / "nowhere")
    removal.remove_folder(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "outside/kept").exists()


def test_removing_a_missing_file_does_nothing(tmp_path: Path) -> None:
    removal.remove(tmp_path / "none")
    removal.remove(tmp_path / "no/folder")
    with pytest.raises(StorageError):
        removal.remove_folder(tmp_path / "none")


def test_sweep_takes_only_partials(tmp_path: Path) -> None:
    for name in ("a.partial", "b.partial", "partial", "a.partial.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.partial").mkdir()
    assert [p.name for p in removal.sweep_partials(tmp_path)] == ["a.partial", "b.partial"]
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["a.partial.txt", "folder.partial", "partial"]
    assert removal.sweep_partials(tmp_path) == []


def test_truncate(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    durable.truncate(tmp_path / "file", 4)
    assert (tmp_path / "file").read_bytes() == b"abcd"


def test_read_bytes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_bytes(b"x")
    assert contents.read_bytes(tmp_path / "sub/file", tmp_path) == b"x"
    with pytest.raises(CorruptStoreError, match="missing") as caught:
        contents.read_bytes(tmp_path / "sub/none", tmp_path)
    assert caught.value.file == "sub/none"
    with pytest.raises(StorageError, match="Is a directory"):
        contents.read_bytes(tmp_path / "sub", tmp_path)


# --- the lock ---

HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from featurestore.system.locks import FileLock
    lock = FileLock(Path(sys.argv[1]), Path("the store"))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that holds the lock at ``tmp_path / "lock"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_error_names_the_process_that_holds_the_lock(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(StoreLockedError, match="the store is being written by") as caught:
        FileLock(tmp_path / "lock", Path("the store"))
    assert (caught.value.pid, caught.value.host) == (holder.pid, socket.gethostname())
    assert lock_holder(tmp_path / "lock") == (holder.pid, socket.gethostname())


def test_the_lock_dies_with_its_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock_holder(tmp_path / "lock") is None
    FileLock(tmp_path / "lock", tmp_path).release()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"pid": '])
def test_a_holder_that_left_no_name(
    tmp_path: Path, holder: subprocess.Popen[str], content: bytes
) -> None:
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(StoreLockedError, match="another process") as caught:
        FileLock(tmp_path / "lock", tmp_path)
    assert (caught.value.pid, caught.value.host) == (None, None)
    assert lock_holder(tmp_path / "lock") == (None, None)


def test_the_lock_is_released_once(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock", tmp_path)
    assert lock_holder(tmp_path / "lock") == (os.getpid(), socket.gethostname())
    lock.release()
    other = FileLock(tmp_path / "lock", tmp_path)
    lock.release()  # must not close a descriptor that was reused
    assert lock_holder(tmp_path / "lock") == (os.getpid(), socket.gethostname())
    other.release()
    assert lock_holder(tmp_path / "lock") is None
    assert lock_holder(tmp_path / "none") is None


def test_no_lock_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        FileLock(tmp_path / "none/lock", tmp_path)


def test_only_a_build_promises_that_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of an export is not part of a store."""
    for number in (errno.EACCES, errno.ENOSPC):
        fail_at(monkeypatch, 1, number)
        with pytest.raises(StorageError) as caught:
            durable.replace_file(tmp_path / "export.npy", b"x")
        assert "committed" not in str(caught.value)
        assert "--resume" not in str(caught.value)
        caught.value.add_promise()
        assert "Nothing that was committed is lost. Run it again with --resume." in str(
            caught.value
        )
        assert len(str(caught.value).splitlines()) <= 4
