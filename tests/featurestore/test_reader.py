import gc
import mmap
import resource
from pathlib import Path

import numpy as np
import pytest
import zarr

from featurestore import reader
from featurestore.arrays import ArraySpec
from featurestore.errors import ConfigError, CorruptStoreError, StorageError
from featurestore.reader import ADVICE, advise, choose_advice, map_chunks
from featurestore.store import FeatureStore
from tests.featurestore.stores import DIMS, make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("reader") / "store"
    make_store(path)
    return path


@pytest.fixture
def spec(path):
    return FeatureStore(path).spec.feature("clip_image")


def mapped_files(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", DIMS)
def test_equal_to_zarr(path, name):
    flat = map_chunks(path, FeatureStore(path).spec.feature(name), range(3))
    assert (flat.shape, flat.dtype) == ((12, 4, DIMS[name]), np.float32)
    np.testing.assert_array_equal(flat[:11], zarr.open_group(path, mode="r")[name][:])
    assert np.isnan(flat[11]).all()  # the last chunk's filling


def test_a_row_is_where_the_paper_puts_it(path, spec):
    rows = map_chunks(path, spec, range(3)).reshape(-1, 64)
    expected = zarr.open_group(path, mode="r")["clip_image"][:]
    picks = np.array([[0, 0], [10, 3], [4, 0], [3, 3]])
    taken = rows.take(picks[:, 0] * 4 + picks[:, 1], axis=0)
    np.testing.assert_array_equal(taken, expected[picks[:, 0], picks[:, 1]])
    taken[:] = 0  # a copy: the store is untouched
    np.testing.assert_array_equal(rows[0], expected[0, 0])


def test_only_the_chunks_asked_for(tmp_path):
    rows = make_store(tmp_path / "s", chunks=[0, 2])["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_chunks(tmp_path / "s", spec, [2, 0])
    np.testing.assert_array_equal(flat[:4], rows[:4])
    np.testing.assert_array_equal(flat[8:11], rows[8:])
    with pytest.raises(CorruptStoreError, match="missing"):
        map_chunks(tmp_path / "s", spec, range(3))


def test_read_only(path, spec):
    flat = map_chunks(path, spec, range(3))
    assert not flat.flags.writeable
    assert not flat[3:].reshape(-1).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        flat[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        flat.flags.writeable = True


def test_no_descriptor_is_held(tmp_path):
    # More chunks than the descriptors left: numpy.memmap, one per chunk, would fail here.
    make_store(tmp_path / "s", samples=40, views=1, chunk=1, dims={"clip_image": 1024})
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, hard))
    try:
        flat = map_chunks(tmp_path / "s", spec, range(40))
        assert open_files() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert mapped_files(tmp_path) == 40
    assert np.isfinite(flat).all()


def test_freed_with_the_last_view_and_not_before(path, spec):
    gc.collect()
    before = mapped_files(path)
    flat = map_chunks(path, spec, range(3))
    view = flat.reshape(-1, 64)[5:]
    expected = np.array(view[:30])
    assert mapped_files(path) == before + 3
    del flat
    gc.collect()
    assert mapped_files(path) == before + 3
    np.testing.assert_array_equal(view[:30], expected)
    del view
    assert mapped_files(path) == before


def test_a_replaced_file_does_not_disturb_a_reader(tmp_path):
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_chunks(tmp_path / "s", spec, range(3))
    for file in (tmp_path / "s/clip_image").glob("c.*"):
        file.unlink()
    np.testing.assert_array_equal(flat[:11], rows)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4099, 4101, 8192])
def test_a_file_of_another_size_is_refused_and_nothing_stays_mapped(tmp_path, size):
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    assert spec.chunk_bytes == 4096
    with (tmp_path / "s/clip_image/c.1.0.0").open("r+b") as file:
        file.truncate(size)
    before = open_files()
    with pytest.raises(CorruptStoreError, match=f"{size} bytes, expected 4100") as caught:
        map_chunks(tmp_path / "s", spec, range(3))
    assert (caught.value.file, caught.value.chunk) == ("clip_image/c.1.0.0", 1)
    del caught
    gc.collect()
    assert open_files() == before
    assert mapped_files(tmp_path) == 0


def test_missing_file_and_folder_in_its_place(tmp_path):
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    chunk = tmp_path / "s/clip_image/c.2.0.0"
    chunk.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        map_chunks(tmp_path / "s", spec, range(3))
    chunk.symlink_to(chunk)
    with pytest.raises(StorageError, match="symbolic links"):
        map_chunks(tmp_path / "s", spec, range(3))
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises((CorruptStoreError, StorageError)):
        map_chunks(tmp_path / "s", spec, range(3))


def test_chunks_that_do_not_fill_pages(tmp_path):
    spec = ArraySpec("x", (3, 1, 1), 1, "<f4")
    with pytest.raises(ConfigError, match=f"page of {mmap.PAGESIZE}"):
        map_chunks(tmp_path, spec, [])


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


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_changes_no_row(tmp_path, advice):
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_chunks(tmp_path / "s", spec, range(3), advice)
    resident, flags = mapping(tmp_path)
    # Read before anybody asked, or read without the neighbours, or as the kernel likes.
    assert resident == (12 if advice in ("populate", "auto") else 0)
    assert ["rr" in of for of in flags] == [advice == "random"] * 3
    np.testing.assert_array_equal(flat[:11], rows)


@pytest.mark.parametrize(
    ("size", "sparse", "expected"),
    [
        (0, False, "populate"),
        (500, False, "populate"),
        (501, False, "willneed"),
        (900, False, "willneed"),
        (901, False, "random"),
        (10**15, False, "random"),
        (1, True, "random"),
    ],
)
def test_advice_by_the_memory_there_is(monkeypatch, size, sparse, expected):
    monkeypatch.setattr(reader, "available_bytes", lambda: 1000)
    assert choose_advice(size, sparse=sparse) == expected


def test_a_part_that_cannot_be_read_is_an_error_before_it_is_a_signal(tmp_path):
    make_store(tmp_path / "s")
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    flat = map_chunks(tmp_path / "s", spec, range(3))
    path = tmp_path / "s" / spec.file(1)
    with path.open("r+b") as file:
        file.truncate(0)  # what nobody may do; a bad sector shows itself in the same way
    with pytest.raises(StorageError, match=r"c\.1\.0\.0.*cannot be read"):
        advise(flat[4:8], "populate", path)
    advise(flat[4:8], "willneed", path)


def test_an_older_kernel_reads_ahead_instead(tmp_path, monkeypatch):
    rows = make_store(tmp_path / "s")["clip_image"]
    spec = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    monkeypatch.setitem(reader._MADV, "populate", 9999)
    flat = map_chunks(tmp_path / "s", spec, range(3), "populate")
    np.testing.assert_array_equal(flat[:11], rows)
