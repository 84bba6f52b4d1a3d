"""Digests of weights: always correct, and only cached where that is safe."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.checkpoints import content
from consumers.checkpoints.content import content_sha256
from tests.conftest import ROOT

WEIGHTS = b"weights " * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the test, in a process that has hashed nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_hashed", {})
    return tmp_path / "cache/manyviews/sha256"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests that were computed."""
    made: list[str] = []
    whole = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        digest = whole(file, name)
        made.append(digest.hexdigest())
        return digest

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return made


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances the module's clock, so that a test need not wait until a file has settled."""
    clock = time.time_ns

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: clock() + int(seconds * 1e9))

    return move


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clears the digests that the process has computed."""
    monkeypatch.setattr(content, "_hashed", {})


def test_a_name_says_nothing(cache: Path, tmp_path: Path) -> None:
    """A blob of the hub's cache whose name is the digest of another content."""
    blob = tmp_path / "blobs" / sha256(WEIGHTS)
    blob.parent.mkdir()
    blob.write_bytes(b"other weights")
    (tmp_path / "model.bin").symlink_to(blob)
    assert content_sha256(tmp_path / "model.bin") == sha256(b"other weights")


def test_a_file_is_hashed_once(
    cache: Path,
    reads: list[str],
    later: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, link = tmp_path / "a.bin", tmp_path / "link.bin"
    path.write_bytes(WEIGHTS)
    link.symlink_to(path)
    later(10)
    for name in (path, path, link):
        assert content_sha256(name) == sha256(WEIGHTS)
    forget(monkeypatch)
    assert content_sha256(link) == sha256(WEIGHTS)
    assert reads == [sha256(WEIGHTS)]
    assert len(list(cache.iterdir())) == 1


def _written_in_place(path: Path) -> None:
    path.write_bytes(WEIGHTS.upper())


def _with_the_old_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(WEIGHTS.upper())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replaced_with_the_old_time(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(WEIGHTS.upper())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "change", [_written_in_place, _with_the_old_time, _replaced_with_the_old_time]
)
@pytest.mark.parametrize("new_process", [False, True])
def test_a_change_is_seen_whatever_it_leaves_as_it_was(
    cache: Path,
    later: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    new_process: bool,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    later(10)
    assert content_sha256(path) == sha256(WEIGHTS)
    time.sleep(0.02)  # the kernel's clock moves in steps of at most 10 ms
    change(path)
    if new_process:
        forget(monkeypatch)
    assert content_sha256(path) == sha256(WEIGHTS.upper())


@pytest.mark.parametrize("seconds", [0, 1.5])
def test_nothing_is_kept_of_a_file_that_has_just_changed(
    cache: Path,
    reads: list[str],
    later: Callable[[float], None],
    tmp_path: Path,
    seconds: float,
) -> None:
    """It may change again within the same step of the file system's clock."""
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    later(seconds)
    assert [content_sha256(path) for _ in "ab"] == [sha256(WEIGHTS)] * 2
    assert len(reads) == 2
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    whole = hashlib.file_digest

    def slow(file: Any, name: str) -> Any:
        digest = whole(file, name)
        path.write_bytes(WEIGHTS + b"more")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slow)
    with pytest.raises(OSError, match="changed while it was read"):
        content_sha256(path)
    assert not cache.exists()


def _entry(cache: Path) -> Path:
    (entry,) = cache.glob("*.json")
    return entry


def _flipped(cache: Path) -> None:
    entry = json.loads(_entry(cache).read_bytes())
    entry["sha256"] = "0" + entry["sha256"][1:] if entry["sha256"][0] != "0" else "1" * 64
    _entry(cache).write_text(json.dumps(entry))


def _pipe(cache: Path) -> None:
    entry = _entry(cache)
    entry.unlink()
    os.mkfifo(entry)


def _folder(cache: Path) -> None:
    entry = _entry(cache)
    entry.unlink()
    entry.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: _entry(cache).write_bytes(b""),
        lambda cache: _entry(cache).write_bytes(_entry(cache).read_bytes()[:-9]),
        lambda cache: _entry(cache).write_bytes(b"\xff\xfe"),
        lambda cache: _entry(cache).write_bytes(b"[]"),
        lambda cache: _entry(cache).write_bytes(b"[" * 4000),
        lambda cache: _entry(cache).write_bytes(b'{"sha256": 3}'),
        lambda cache: _entry(cache).chmod(0),
        _flipped,
        _pipe,
        _folder,
    ],
    ids=["empty", "torn", "bytes", "list", "deep", "other", "unreadable", "flip", "pipe", "folder"],
)
def test_a_damaged_entry_costs_hashing_again(
    cache: Path,
    reads: list[str],
    later: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    later(10)
    content_sha256(path)
    damage(cache)
    forget(monkeypatch)
    assert content_sha256(path) == sha256(WEIGHTS)
    if os.geteuid() or damage.__name__ != "<lambda>":  # root reads what is not readable
        assert len(reads) == 2


def test_an_entry_of_another_user_is_not_believed(
    cache: Path,
    reads: list[str],
    later: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    later(10)
    content_sha256(path)
    forget(monkeypatch)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert content_sha256(path) == sha256(WEIGHTS)
    assert len(reads) == 2


@pytest.mark.parametrize("where", ["file", "closed", "relative", "nowhere"])
def test_a_cache_that_cannot_be_written_costs_no_more_than_hashing(
    cache: Path,
    reads: list[str],
    later: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    if where == "file":
        (tmp_path / "cache").write_bytes(b"no folder")
    elif where == "closed":  # not even root writes there
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/fdinfo")
    elif where == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    path = tmp_path / "a.bin"
    path.write_bytes(WEIGHTS)
    later(10)
    for _ in "ab":  # two features of one checkpoint
        assert content_sha256(path) == sha256(WEIGHTS)
    assert len(reads) == 1
    assert (tmp_path / "home/.cache/manyviews/sha256").is_dir() == (where == "relative")
    assert not (Path.cwd() / "cache").exists()


_HASH = """
import sys
from pathlib import Path
from consumers.checkpoints import content
started = content.time.time_ns
content.time.time_ns = lambda: started() + 10**10
sys.stdin.readline()
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(content.content_sha256(path), flush=True)
"""


def test_processes_that_hash_at_once_lose_nothing(
    cache: Path, reads: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    contents = [f"file {i}".encode() for i in range(12)]
    for i, data in enumerate(contents):
        (folder / f"{i:02d}").write_bytes(data)
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _HASH, str(folder)]
    processes = [subprocess.Popen(command, cwd=ROOT, **pipe) for _ in "abc"]  # type: ignore[call-overload]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    expected = [sha256(data) for data in contents]
    for process in processes:
        assert process.communicate()[0].split() == expected
        assert process.returncode == 0
    assert len(list(cache.iterdir())) == len(contents)  # and no temporary file
    assert [content_sha256(path) for path in sorted(folder.iterdir())] == expected
    assert reads == []
