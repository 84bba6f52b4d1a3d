"""Refusals by the system are never damage: real limits in separate processes, and each error.

Every child here opens a sound store under a limit that is too low for it. It must say what is
lacking, and leave every byte of the store as it was.
"""

from __future__ import annotations

import errno
import gzip
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from featurestore.errors import (
    CorruptStoreError,
    StorageError,
    StorageFullError,
)
from featurestore.imdb.materialize import materialize, verify_materialized
from featurestore.reading import mapping
from featurestore.reading.npy import map_npy
from featurestore.storage import arrays
from featurestore.storage.creation import state_of
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.system.refusals import (
    explained,
    is_file,
    is_folder,
    machine_error,
    refusal,
    status_of,
)
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from manyviews.operations.current_inputs import compare
from producers.sources.collection import CollectionConfig
from tests import warm
from tests.conftest import ROOT
from tests.featurestore.stores import make_store, tree

CHUNK_FILE = "clip_image/c.1.0.0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "store"
    make_store(path)
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "store")


def refuse(monkeypatch: pytest.MonkeyPatch, ending: str, number: int, *names: str) -> list[str]:
    """Lets the kernel's calls fail for files whose path ends so; returns those that did."""
    met: list[str] = []

    def failing(honest: Callable[..., object]) -> Callable[..., object]:
        def call(path: object, *more: object, **options: object) -> object:
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).endswith(ending):
                met.append(os.fsdecode(path))
                raise OSError(number, os.strerror(number), os.fsdecode(path))
            return honest(path, *more, **options)

        return call

    for name in names or ("open",):
        if name == "open":
            monkeypatch.setattr("io.open", failing(open))
            monkeypatch.setattr("builtins.open", failing(open))
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    return met


MACHINE = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
)


# The errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", MACHINE)
def test_each_error_has_advice_and_names_the_file(number: int) -> None:
    error = refusal(Path("/a/file"), OSError(number, os.strerror(number)))
    assert type(error) is StorageError
    first, advice = str(error).split("\n")
    assert first == f"Could not use /a/file: {os.strerror(number)}."
    assert len(advice) > 20
    assert "damage" not in str(error)
    assert "repair" not in str(error)


def test_too_many_files_says_how_many_and_how_to_have_more() -> None:
    error = str(refusal(Path("x"), OSError(errno.EMFILE, "Too many open files")))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"may open {soft:,} files" in error
    assert "ulimit -n" in error


def test_no_memory_and_no_space() -> None:
    assert "not enough memory" in str(refusal(Path("x"), MemoryError()))
    error = refusal(Path("x"), OSError(errno.ENOSPC, "No space"), 12345)
    assert isinstance(error, StorageFullError)
    assert error.bytes == 12345


def test_a_system_error_is_found_inside_a_librarys_error() -> None:
    def chained(cause: BaseException) -> ValueError:
        try:
            raise ValueError("cannot decode") from cause
        except ValueError as e:
            return e

    refused = OSError(errno.EMFILE, "Too many open files")
    assert machine_error(chained(refused)) is refused
    assert isinstance(machine_error(chained(MemoryError())), MemoryError)
    thread = machine_error(RuntimeError("can't start new thread"))
    assert isinstance(thread, OSError)
    assert thread.errno == errno.EAGAIN
    for content in (
        ValueError("bad"),
        chained(FileNotFoundError(errno.ENOENT, "No such file")),
        gzip.BadGzipFile("Not a gzipped file"),  # an OSError, and about content
        chained(IsADirectoryError(errno.EISDIR, "Is a directory")),
    ):
        assert machine_error(content) is None
    assert explained(OSError(errno.EBADF, "Bad file descriptor")) is None  # a defect
    assert explained(ValueError()) is None


def test_file_and_folder_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert (is_file(tmp_path / "file"), is_folder(tmp_path / "file")) == (True, False)
    assert (is_file(tmp_path), is_folder(tmp_path)) == (False, True)
    assert status_of(tmp_path / "none") is status_of(tmp_path / "file/below") is None
    refuse(monkeypatch, "file", errno.EACCES, "stat")
    with pytest.raises(StorageError, match="Permission denied"):
        is_file(tmp_path / "file")


# Readers and verify -----------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "open": FeatureStore,
    "read_chunk": lambda path: FeatureStore(path).read_chunk("clip_image", 1),
    "moments": lambda path: FeatureStore(path).moments("clip_image"),
    "dataset": lambda path: FeatureDataset(path, checksum=True),
    "writer": lambda path: StoreWriter(path, take_lock(path)),
    "state": state_of,
    "verify": verify,
}
# The files that each reader must open.
TOUCHED: dict[str, tuple[str, ...]] = {
    "zarr.json": ("open", "read_chunk", "moments", "dataset", "writer", "verify"),
    "records/ledger.jsonl": ("open", "read_chunk", "moments", "dataset", "writer", "verify"),
    CHUNK_FILE: ("read_chunk", "dataset", "writer", "verify"),
    "records/moments/clip_image/c.1.0.0": ("moments", "dataset", "writer", "verify"),
    "records/samples.jsonl": ("verify",),
}


@pytest.mark.parametrize("number", MACHINE)
@pytest.mark.parametrize("file", TOUCHED)
def test_no_reader_calls_it_damage(
    store: Path, monkeypatch: pytest.MonkeyPatch, file: str, number: int
) -> None:
    before = tree(store)
    for name in TOUCHED[file]:
        with monkeypatch.context() as patch:
            met = refuse(patch, f"/store/{file}", number, "open", "stat")
            with pytest.raises(StorageError, match=os.strerror(number)) as caught:
                READERS[name](store)
        assert met, name
        assert not isinstance(caught.value, CorruptStoreError)
        assert caught.value.path == store / file, name
        assert "--repair` and then" not in str(caught.value)
    assert tree(store) == before
    assert verify(store).findings == []


def test_verify_names_everything_that_it_could_not_read(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = [f for f in tree(store) if f.endswith("c.0.0.0")]
    refuse(monkeypatch, "c.0.0.0", errno.EIO)
    with pytest.raises(StorageError) as caught:
        verify(store)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert f"could not be checked, because {len(unread)} of its files cannot be read" in lines[0]
    assert all(name in str(caught.value) for name in ("clip_image/c.0.0.0", "not damage", "dmesg"))
    assert "remove the file: `verify --repair` then drops its chunk" in lines[3]


def test_a_folder_that_cannot_be_listed_is_no_sound_store(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "/clip_image", errno.ENFILE, "scandir")
    with pytest.raises(StorageError, match="clip_image"):
        verify(store)


def test_a_missing_file_is_damage_still(store: Path) -> None:
    (store / CHUNK_FILE).unlink()
    assert [f.file for f in verify(store).findings] == [CHUNK_FILE]
    for name in ("read_chunk", "dataset", "writer"):
        with pytest.raises(CorruptStoreError, match="missing"):
            READERS[name](store)


def test_rewritten_arrays(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that zarr cannot open, or has no memory for, are not damaged."""
    name = "clip_image"
    rows = np.asarray(zarr.open_array(store / name, mode="r")[:])
    spec = zarr.open_array(store / name, mode="r")
    zarr.create_array(
        store / name, data=rows, chunks=spec.chunks, fill_value=float("nan"), overwrite=True
    )
    opened = FeatureStore(store)
    assert opened.array(name).codec == "rewritten"
    with monkeypatch.context() as patch:
        refuse(patch, "c/1/0/0", errno.EMFILE)
        with pytest.raises(StorageError, match="Too many open files"):
            opened.read_chunk(name, 1)
    for error in (MemoryError(), RuntimeError("can't start new thread")):
        with monkeypatch.context() as patch:
            patch.setattr(arrays, "_open_rewritten", lambda *_, e=error: (_ for _ in ()).throw(e))
            with pytest.raises(StorageError):
                opened.read_chunk(name, 1)
            with pytest.raises(StorageError):
                FeatureStore(store)
    opened.read_chunk(name, 1)


def test_a_compressed_chunk_without_enough_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numcodecs import zstd

    make_store(tmp_path / "store", codec="zstd")

    def none(_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(zstd, "decompress", none)
    with pytest.raises(StorageError, match="not enough memory"):
        FeatureStore(tmp_path / "store").read_chunk("clip_image", 0)
    with pytest.raises(StorageError, match=r"could not be checked(.|\n)*not enough memory"):
        verify(tmp_path / "store")


def test_mapping_that_the_kernel_refuses(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM of mmap: too many mappings, or too little address space."""
    honest, calls = mapping._mmap, []

    def refused(address: int | None, *more: int) -> int:
        calls.append(address)
        if len(calls) == 3:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return honest(address, *more)

    monkeypatch.setattr(mapping, "_mmap", refused)
    with pytest.raises(StorageError, match="max_map_count") as caught:
        FeatureDataset(store, zscore="none")
    assert caught.value.path == store / CHUNK_FILE
    calls.extend([None] * 10)
    FeatureDataset(store, zscore="none")


# Materialized files and inputs ------------------------------------------------------------------


def test_materialized_files(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    materialize(FeatureStore(store), out, prefix="p")
    for file in ("p_manifest.json", "p_clip_image.npy"):
        with monkeypatch.context() as patch:
            refuse(patch, file, errno.EMFILE)
            with pytest.raises(StorageError, match="Too many open files") as caught:
                verify_materialized(out, "p")
        assert caught.value.path == out / file
    with monkeypatch.context() as patch:
        refuse(patch, "p_clip_image.npy", errno.EACCES)
        with pytest.raises(StorageError, match="Permission denied"):
            map_npy(out / "p_clip_image.npy")
    assert verify_materialized(out, "p") == []


def test_inputs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable input is not reported as changed."""
    data = tmp_path / "data"
    data.mkdir()
    for sample in FeatureStore(store).samples:
        (data / str(sample.image_name)).write_bytes(b"x")
        (data / str(sample.text_name)).write_bytes(b"x")
    name = str(FeatureStore(store).samples[0].image_name)
    refuse(monkeypatch, name, errno.EIO)
    with pytest.raises(StorageError, match="Input/output error") as caught:
        compare(store, CollectionConfig.mm_imdb(data), verify(store))
    assert caught.value.path.name == name


# Real limits ------------------------------------------------------------------------------------

CHILD = """
import os, resource, sys
sys.path.insert(0, {root!r})
import google_crc32c, numpy, torch, numcodecs.zstd, featurestore.verify.repair
from pathlib import Path
from featurestore.training.dataset import FeatureDataset
from featurestore.errors import ManyViewsError
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from manyviews.commands import verify as _command, options as _options
from manyviews import main
import encodings.idna, rich.progress, rich.console, json
store = Path(sys.argv[1])
verify(store); FeatureDataset(store)  # everything is imported
{limit}
"""
END = """
try:
    FeatureDataset(store)
except ManyViewsError as e:
    print(type(e).__name__, e)
main.main(["verify", "--store", str(store), "--repair"])
"""
FILES = """
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
soft = max(held) + 1
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""
MEMORY = """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 20), -1))
"""


@pytest.mark.parametrize(
    ("limit", "read", "mapped"),
    [(FILES, "ulimit -n", "ulimit -n"), (MEMORY, "memory", "max_map_count")],
    ids=["files", "memory"],
)
def test_a_real_limit(tmp_path: Path, limit: str, read: str, mapped: str) -> None:
    """A dataset and ``verify --repair`` report the lacking resource, and nothing is dropped."""
    store = tmp_path / "store"
    # A chunk of 16 MiB, which does not fit under the limit.
    make_store(store, samples=1024, views=64, chunk=1024, dims={"clip_image": 64})
    before = tree(store)
    script = CHILD.format(root=str(ROOT), limit=limit) + END
    command = [sys.executable, "-c", script, store]
    done = warm.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("StorageError Could not use"), done
    assert mapped in done.stdout
    assert str(store) in done.stdout
    assert done.returncode == 1, done
    assert read in done.stderr, done.stderr
    assert "damaged" not in done.stderr
    assert "defect" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4, done.stderr
    assert tree(store) == before
    assert verify(store).findings == []
