import ctypes
import gc
import itertools
import mmap
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.errors import ConfigError, CorruptStoreError, StorageError
from featurestore.reading import blocks
from featurestore.reading import mapping as reader
from featurestore.reading.mapping import (
    ADVICE,
    Advice,
    advise,
    choose_advice,
    is_cached,
    map_chunks,
    will_need,
)
from featurestore.reading.rows import store_rows
from featurestore.storage.shape import ArraySpec
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import DIMS, make_store, zarr_rows

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "store"
    make_store(path)
    return path


@pytest.fixture
def spec(path: Path) -> ArraySpec:
    return FeatureStore(path).spec.feature("clip_image")


def map_flat(
    root: Path, spec: ArraySpec, chunks: Sequence[int], advice: Advice = "none"
) -> np.ndarray:
    """``[chunks * rows, V, D]``: chunks of this size are contiguous."""
    mapped = map_chunks(root, spec, chunks, advice)
    assert mapped.flags.c_contiguous
    return mapped.reshape(-1, *spec.shape[1:])


def mapped_files(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", DIMS)
def test_equal_to_zarr(path: Path, name: str) -> None:
    flat = map_flat(path, FeatureStore(path).spec.feature(name), range(3))
    assert flat.shape == (12, 4, DIMS[name])
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat[:11], zarr_rows(path, name))
    assert np.isnan(flat[11]).all()  # the padding of the last chunk


def test_a_row_is_where_the_paper_puts_it(path: Path, spec: ArraySpec) -> None:
    rows = map_flat(path, spec, range(3)).reshape(-1, 64)
    expected = zarr_rows(path, "clip_image")
    picks = np.array([[0, 0], [10, 3], [4, 0], [3, 3]])
    taken = rows.take(picks[:, 0] * 4 + picks[:, 1], axis=0)
    np.testing.assert_array_equal(taken, expected[picks[:, 0], picks[:, 1]])
    taken[:] = 0  # a copy: the store is untouched
    np.testing.assert_array_equal(rows[0], expected[0, 0])


def test_only_the_requested_chunks_are_mapped(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", chunks=[0, 2])["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_flat(tmp_path / "s", spec, [2, 0])
    np.testing.assert_array_equal(flat[:4], rows[:4])
    np.testing.assert_array_equal(flat[8:11], rows[8:])
    with pytest.raises(CorruptStoreError, match="missing"):
        map_flat(tmp_path / "s", spec, range(3))


def test_read_only(path: Path, spec: ArraySpec) -> None:
    flat = map_flat(path, spec, range(3))
    assert not flat.flags.writeable
    assert not flat[3:].reshape(-1).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        flat[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        flat.flags.writeable = True


def test_no_descriptor_is_held(tmp_path: Path) -> None:
    # There are more chunks than free descriptors: one numpy.memmap per chunk would fail.
    make_store(tmp_path / "s", samples=40, views=1, chunk=1, dims={"clip_image": 1024})
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, hard))
    try:
        flat = map_flat(tmp_path / "s", spec, range(40))
        assert open_files() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert mapped_files(tmp_path) == 40
    assert np.isfinite(flat).all()


def test_freed_with_the_last_view_and_not_before(path: Path, spec: ArraySpec) -> None:
    gc.collect()
    before = mapped_files(path)
    flat = map_flat(path, spec, range(3))
    view = flat.reshape(-1, 64)[5:]
    expected = np.array(view[:30])
    assert mapped_files(path) == before + 3
    del flat
    gc.collect()
    assert mapped_files(path) == before + 3
    np.testing.assert_array_equal(view[:30], expected)
    del view
    assert mapped_files(path) == before


def test_a_replaced_file_does_not_disturb_a_reader(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_flat(tmp_path / "s", spec, range(3))
    for file in (tmp_path / "s/clip_image").glob("c.*"):
        file.unlink()
    np.testing.assert_array_equal(flat[:11], rows)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4099, 4101, 8192])
def test_a_file_of_another_size_is_refused_and_nothing_stays_mapped(
    tmp_path: Path, size: int
) -> None:
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    assert spec.chunk_bytes == 4096
    with (tmp_path / "s/clip_image/c.1.0.0").open("r+b") as file:
        file.truncate(size)
    before = open_files()
    with pytest.raises(CorruptStoreError, match=f"{size} bytes, expected 4100") as caught:
        map_flat(tmp_path / "s", spec, range(3))
    assert (caught.value.file, caught.value.chunk) == ("clip_image/c.1.0.0", 1)
    del caught
    gc.collect()
    assert open_files() == before
    assert mapped_files(tmp_path) == 0


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    chunk = tmp_path / "s/clip_image/c.2.0.0"
    chunk.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        map_flat(tmp_path / "s", spec, range(3))
    chunk.symlink_to(chunk)
    with pytest.raises(StorageError, match="symbolic links"):
        map_flat(tmp_path / "s", spec, range(3))
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises((CorruptStoreError, StorageError)):
        map_flat(tmp_path / "s", spec, range(3))


def test_chunks_that_do_not_fill_pages(tmp_path: Path) -> None:
    spec = ArraySpec("x", (3, 1, 1), 1, "<f4")
    with pytest.raises(ConfigError, match=f"page of {mmap.PAGESIZE}"):
        map_flat(tmp_path, spec, [])


# --- chunks that are huge pages apart ---

GAP: dict[str, Any] = {
    "samples": 20,
    "views": 10,
    "chunk": 8,
    "dims": {"clip_image": 4096},
}  # 1.25 MiB a chunk


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "store"
    make_store(path, **GAP)
    return path


def test_each_chunk_begins_where_a_huge_page_can(wide: Path) -> None:
    spec = FeatureStore(wide).spec.feature("clip_image")
    mapped = map_chunks(wide, spec, range(3))
    assert mapped.shape == (3, 8, 10, 4096)
    assert mapped.__array_interface__["data"][0] % (2 << 20) == 0
    assert mapped.strides[0] == 2 << 20
    assert not mapped.flags.writeable
    expected = zarr_rows(wide, "clip_image")
    for chunk in range(3):
        rows = expected[chunk * 8 : chunk * 8 + 8]
        np.testing.assert_array_equal(mapped[chunk, : len(rows)], rows)


def test_rows_of_distant_chunks_are_where_they_belong(wide: Path) -> None:
    expected = zarr_rows(wide, "clip_image")
    rows = store_rows(FeatureStore(wide), "clip_image", None, advice="random")
    rng = np.random.default_rng(0)
    for _ in range(3):
        samples, views = rng.integers(0, 20, 9), rng.integers(0, 10, (9, 2))
        np.testing.assert_array_equal(rows.take(samples, 3), expected[samples, 3])
        one = views[:, 0]
        np.testing.assert_array_equal(rows.take(samples, one), expected[samples, one])
        pairs = expected[samples[:, None], views]
        np.testing.assert_array_equal(rows.take(samples, views), pairs)
        np.testing.assert_array_equal(rows.take(samples, "all"), expected[samples])
    for sample, view in ((20, 0), (-1, 0), (0, 10), (0, -1)):
        with pytest.raises(IndexError, match="samples 0 to 19 and views 0 to 9"):
            rows.take(np.array([sample]), view)
    with pytest.raises(IndexError, match="samples 0 to 19"):
        rows.take(np.array([20]), "all")


def test_rows_are_prefetched_before_they_are_read(wide: Path) -> None:
    spec = FeatureStore(wide).spec.feature("clip_image")
    mapped = map_chunks(wide, spec, range(3), "random")
    for chunk in range(3):
        fd = os.open(wide / spec.file(chunk), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    will_need(mapped[1].reshape(-1, 4096), np.array([3, 40]), 10)
    address = mapped[1].__array_interface__["data"][0]
    wanted = [address + row * 16384 for row in (3, 12, 40, 49)]
    until = time.monotonic() + 30
    while not all(in_memory(where) for where in wanted):
        assert time.monotonic() < until
        time.sleep(0.01)


def in_memory(address: int) -> bool:
    status = ctypes.c_uint8()
    pages = (ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(status))
    assert reader._libc.mincore(*pages) == 0
    return bool(status.value & 1)


def test_batches_are_prefetched_only_while_the_disk_is_slow(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, asked = iter(range(0)), []
    monkeypatch.setattr(blocks, "_major_faults", lambda: next(faults))
    monkeypatch.setattr(blocks, "will_need", lambda *_: asked.append(True))
    rows = store_rows(FeatureStore(wide), "clip_image", None, advice="random")

    def batches(count: int, grows: int) -> int:
        nonlocal faults
        faults = itertools.count(0, grows)
        asked.clear()
        for _ in range(count):
            rows.take(np.arange(5), 0)
        return len(asked)

    assert batches(4, 0) == 4  # the state of the disk is unknown at first
    assert batches(50, 0) == 0  # everything is in memory
    assert batches(1, 1) == 0  # this batch waits for the disk
    assert batches(4, 1) == 4
    assert batches(1, 1) == 0  # one batch without prefetch, to probe the disk
    assert batches(8, 1) == 8
    assert batches(50, 0) == 0
    in_ram = store_rows(FeatureStore(wide), "clip_image", None, advice="populate")
    asked.clear()
    in_ram.take(np.arange(5), 0)
    assert not asked


# --- advice ---


def mapping(folder: Path) -> tuple[int, list[set[str]]]:
    """Resident kilobytes of the files mapped from a folder, and the flags of each mapping."""
    resident, flags, inside = 0, [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0]:
            inside = f"{folder}/" in line
        elif inside and head[0] == "Rss:":
            resident += int(head[1])
        elif inside and head[0] == "VmFlags:":
            flags.append(set(head[1:]))
    return resident, flags


@pytest.mark.parametrize("advice", [advice for advice in ADVICE if advice != "auto"])
def test_advice_changes_no_row(tmp_path: Path, advice: Advice) -> None:
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_flat(tmp_path / "s", spec, range(3), advice)
    resident, flags = mapping(tmp_path)
    # Read at opening, read without the neighbours, or read as the kernel chooses.
    assert resident == (12 if advice == "populate" else 0)
    assert ["rr" in of for of in flags] == [advice == "random"] * 3
    np.testing.assert_array_equal(flat[:11], rows)


@pytest.mark.parametrize(
    ("size", "sparse", "cached", "expected"),
    [
        (0, False, True, "populate"),
        (500, False, True, "populate"),
        (500, False, False, "random"),
        (501, False, True, "willneed"),
        (900, False, True, "willneed"),
        (900, False, False, "random"),
        (901, False, True, "random"),
        (10**15, False, True, "random"),
        (1, True, True, "random"),
    ],
)
def test_advice_by_memory_and_where_the_files_are(
    monkeypatch: pytest.MonkeyPatch, size: int, sparse: bool, cached: bool, expected: str
) -> None:
    monkeypatch.setattr(reader, "available_bytes", lambda: 1000)
    monkeypatch.setattr(reader, "is_cached", lambda _files: cached)
    assert choose_advice([], size, sparse=sparse) == expected


def drop(files: Sequence[Path]) -> None:
    for file in files:
        fd = os.open(file, os.O_RDWR)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_files_are_cached_until_they_are_dropped(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(os.urandom(1 << 20))
    assert is_cached(files)
    assert is_cached([])
    drop(files)
    maps = [np.memmap(file, np.uint8, "r") for file in files]
    starts = [each.__array_interface__["data"][0] for each in maps]
    dropped = [not in_memory(start + at) for start in starts for at in range(0, 1 << 20, 4096)]
    # The kernel reports every page; some file systems cannot drop pages.
    assert is_cached(files) is (sum(dropped) < 0.1 * len(dropped))
    for each in maps:
        each.max()
    assert is_cached(files)
    assert is_cached([tmp_path / "not there"])  # opening it raises the error


def test_a_query_does_not_change_its_result(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(64 << 20))
    drop([file])
    before = is_cached([file])  # true only on a file system without a disk
    time.sleep(0.5)  # the kernel would have fetched the page by then
    assert [is_cached([file]) for _ in range(5)] == [before] * 5


def test_a_part_that_cannot_be_read_is_an_error_before_it_is_a_signal(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_flat(tmp_path / "s", spec, range(3))
    path = tmp_path / "s" / spec.file(1)
    with path.open("r+b") as file:
        file.truncate(0)  # forbidden to users; a bad sector has the same effect
    with pytest.raises(StorageError, match=r"c\.1\.0\.0.*cannot be read"):
        advise(flat[4:8], "populate", path)
    advise(flat[4:8], "willneed", path)


def test_an_older_kernel_reads_ahead_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    monkeypatch.setitem(reader._MADV, "populate", 9999)
    flat = map_flat(tmp_path / "s", spec, range(3), "populate")
    np.testing.assert_array_equal(flat[:11], rows)
