"""Changed inputs of committed samples are detected, even with unreliable stats."""

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import StorageError
from featurestore.records import BadInput, SampleRecord
from producers.sources import files
from producers.sources.inputs import (
    InputStat,
    changed_inputs,
    extend_cache,
    read_cache,
    stat_inputs,
    stat_of,
)
from producers.sources.pairs import scan
from producers.sources.scan import InputStats

Cached = Mapping[int, InputStat]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"poster %d" % i)
        (tmp_path / f"{i}.json").write_bytes(b'{"plot": "%d"}' % i)
    return tmp_path


def records_of(folder: Path) -> list[SampleRecord]:
    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    return [SampleRecord(i, digest(f"{i}.jpg"), digest(f"{i}.json"), 1) for i in range(4)]


def kept(folder: Path) -> Cached:
    return stats_of(stat_inputs(scan(folder)))


def stats_of(stats: InputStats) -> Cached:
    return {i: stat_of(stats, i) for i in range(len(stats))}


def check(folder: Path, records: Sequence[SampleRecord], cached: Cached) -> list[str]:
    """Names of what changed; the samples that were read and are unchanged must be the others."""
    found = scan(folder)
    stats = stat_inputs(found)
    changed, confirmed = changed_inputs(found, records, stats, cached)
    now = stats_of(stats)
    differing = {r.index for r in records if cached.get(r.index) != now[r.index]}
    assert confirmed == {i: now[i] for i in differing - changed.keys()}
    return [name for names in changed.values() for name in names]


def test_nothing_changed(folder: Path) -> None:
    records = records_of(folder)
    assert check(folder, records, kept(folder)) == []
    assert check(folder, records, {}) == []


def test_another_time_with_the_same_content_is_read_and_accepted(folder: Path) -> None:
    records, cached = records_of(folder), kept(folder)
    os.utime(folder / "1.jpg", ns=(1, 1))
    assert check(folder, records, cached) == []


def test_times_of_any_century_differ(folder: Path) -> None:
    """As far as the file system keeps them; int64 nanoseconds end in 2262."""
    records = records_of(folder)
    for seconds in (-(2**30), 2**33, 2**33 + 2**31):
        os.utime(folder / "2.jpg", (seconds, seconds))
        cached = kept(folder)
        assert check(folder, records, cached) == []
        os.utime(folder / "2.jpg", (seconds + 1, seconds + 1))
        assert kept(folder) != cached
        assert check(folder, records, cached) == []


def test_another_content_is_named(folder: Path) -> None:
    records, cached = records_of(folder), kept(folder)
    (folder / "2.json").write_bytes(b'{"plot": "another"}')
    (folder / "0.jpg").write_bytes(b"")
    assert check(folder, records, cached) == ["0.jpg", "2.json"]


def test_the_same_size_and_time_hide_a_change_until_everything_is_read(folder: Path) -> None:
    records, cached = records_of(folder), kept(folder)
    status = (folder / "3.jpg").stat()
    (folder / "3.jpg").write_bytes(b"POSTER 3")
    os.utime(folder / "3.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check(folder, records, cached) == []
    assert check(folder, records, {}) == ["3.jpg"]


def test_a_file_that_became_unreadable_is_named(folder: Path) -> None:
    found, records = scan(folder), records_of(folder)
    (folder / "1.json").unlink()
    assert changed_inputs(found, records, stat_inputs(found), {})[0] == {1: ["1.json"]}


def test_only_the_file_that_looks_different_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, cached = records_of(folder), kept(folder)
    read: list[str] = []
    honest = files.read_capped

    def recorded(path: Path, cap_bytes: int) -> bytes:
        read.append(path.name)
        return honest(path, cap_bytes)

    monkeypatch.setattr(files, "read_capped", recorded)
    os.utime(folder / "1.json", ns=(1, 1))
    assert check(folder, records, cached) == []
    assert read == ["1.json"]


def test_an_input_that_could_not_be_read_has_nothing_to_compare(folder: Path) -> None:
    records = [SampleRecord(r.index, "", r.text_sha256, 1) for r in records_of(folder)]
    (folder / "1.jpg").write_bytes(b"repaired")
    assert check(folder, records, {}) == []


def test_a_poster_of_too_many_pixels_is_no_file_of_too_many_bytes(folder: Path) -> None:
    """Both are too large, but the content of one is known: its presence is no change."""
    records, cached = records_of(folder), kept(folder)
    bad = (BadInput(1, "image", "too-large", "20000 x 20000"),)
    read = records[1]
    records[1] = SampleRecord(1, read.image_sha256, read.text_sha256, 1, bad)
    found = scan(folder)

    def repaired() -> dict[int, list[str]]:
        return changed_inputs(found, records, stat_inputs(found), cached, repaired=True)[0]

    assert repaired() == {}
    (folder / "1.jpg").write_bytes(b"a smaller one")
    assert repaired() == {1: ["1.jpg"]}
    records[1] = SampleRecord(1, "", read.text_sha256, 1, bad)  # of bytes
    assert repaired() == {1: ["1.jpg"]}


@pytest.mark.parametrize("reason", ["killed", "timeout"])
def test_an_input_that_ended_its_producer_is_tried_again_once_it_looks_different(
    folder: Path, reason: str
) -> None:
    records, cached = records_of(folder), kept(folder)
    bad = (BadInput(1, "image", reason, "twice"),)
    records[1] = SampleRecord(1, "", records[1].text_sha256, 1, bad)

    def repaired(cached: Cached) -> dict[int, list[str]]:
        found = scan(folder)
        return changed_inputs(found, records, stat_inputs(found), cached, repaired=True)[0]

    assert repaired(cached) == {}
    (folder / "1.jpg").write_bytes(b"a poster that can be decoded")
    assert repaired(cached) == repaired({}) == {1: ["1.jpg"]}
    assert check(folder, records, cached) == []  # only where it is asked for


def test_only_committed_samples_are_compared(folder: Path) -> None:
    records = records_of(folder)[:2]
    (folder / "3.jpg").write_bytes(b"not read yet")
    assert check(folder, records, {}) == []


def test_the_cache_round_trips_and_later_lines_win(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("runs") / "inputs.jsonl"
    assert read_cache(path) == {}
    stats = kept(folder)
    extend_cache(path, {0: stats[0], 1: stats[1]})
    extend_cache(path, {1: stats[2], 3: stats[3]})
    assert read_cache(path) == {0: stats[0], 1: stats[2], 3: stats[3]}


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff",
        b"[" * 100_000,
        b"[[0, 1e999, 2, 3, 4]]",
        b"[[1, 2]]\n",
        b'{"a": 1}\n',
        b"[[0, 1, 2, 3",
    ],
)
def test_a_damaged_cache_only_means_reading_more(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, damage: bytes
) -> None:
    path = tmp_path_factory.mktemp("runs") / "inputs.jsonl"
    extend_cache(path, {0: kept(folder)[0]})
    with path.open("ab") as file:
        file.write(damage + b"\n")
    extend_cache(path, {2: kept(folder)[2]})
    assert read_cache(path) == {i: kept(folder)[i] for i in (0, 2)}


def test_a_moved_folder_is_the_same_data(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    records, cached = records_of(folder), kept(folder)
    other = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(folder, other, copy_function=shutil.copy)  # new times
    assert check(other, records, cached) == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_input_that_cannot_be_read_now_has_not_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its chunk must not be built again for that, without the input."""
    records, honest = records_of(folder), os.open

    def refused(path: Any, *more: Any, **options: Any) -> int:
        if str(path).endswith("1.jpg"):
            raise OSError(number, os.strerror(number))
        return honest(path, *more, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        check(folder, records, {})
    assert caught.value.path == folder / "1.jpg"
    # What could not be read for the store either is as it was.
    unread = SampleRecord(
        1, "", records[1].text_sha256, 1, (BadInput(1, "image", "unreadable", ""),)
    )
    if number != errno.EMFILE:
        assert check(folder, [records[0], unread], {}) == []
