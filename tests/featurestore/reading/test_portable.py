"""Reading on systems that lack what only Linux has, in processes where that is switched off.

They are forked from one process that has imported the libraries, but nothing of this project.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from featurestore.errors import CorruptStoreError, InputError, StorageError
from featurestore.reading.blocks import ChunkedBlocks
from featurestore.reading.chunk_files import ChunkFiles
from featurestore.reading.rows import store_rows
from featurestore.storage.store import FeatureStore
from tests import warm
from tests.conftest import NIGHTLY
from tests.featurestore.stores import make_store, remake

ROOT = Path(__file__).parents[3]
SWITCHES = ROOT / "tests/portable"


class _Libraries(warm.Popen):
    imported = (
        *("torch.utils.data", "zarr", "pytest", "lightning.pytorch"),
        *("click", "filelock", "PIL.Image", "rich.console", "rich.progress", "tokenizers"),
    )


def run(system: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {
        "MANYVIEWS_TEST_SYSTEM": system,
        "PYTHONPATH": os.pathsep.join((str(SWITCHES), str(ROOT))),
        "USER": "someone",  # Windows has no list of users
    }
    command = [sys.executable, *arguments]
    with _Libraries(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=1500)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


# These tests run in processes without Linux: rows, labels, samplers, loaders, the data module, and
# the check of a store.
READING = (
    "reading/test_npy_folder.py",
    "reading/test_rewritten.py::test_the_same_rows",
    "training/test_dataset.py::test_view_policies",
    "training/test_dataset.py::test_labels",
    "training/test_dataset.py::test_pickle_carries_the_path_and_not_the_rows",
    "training/test_dataset.py::test_an_epoch_reaches_persistent_workers",
    "training/test_device.py::test_batches_are_the_samplers",
    "training/test_device.py::test_resident_features_are_the_datasets",
    "sampling/test_samplers.py::test_a_plain_loader_reads_an_epoch[0]",
    "test_datamodule.py::test_loaders_give_aligned_batches[store-0]",
    "test_datamodule.py::test_loaders_give_aligned_batches[embeddings-0]",
    "verify/test_verify_store.py::test_every_file_is_guarded[flip_middle]",
)
# Tests that count descriptors and memory of a process as only Linux does, and a long one.
LINUX: tuple[str, ...] = ("descriptors", "takes_no_memory", "each_byte")
if not NIGHTLY:
    LINUX += ("spawn",)  # a new interpreter imports torch and the other libraries again
# Tests that start processes, which the standard library does by fork here, or write to a store.
POSIX = ("fork", "persistent_workers", "loader_workers")


@pytest.mark.parametrize(("system", "left_out"), [("macOS", LINUX), ("Windows", LINUX + POSIX)])
def test_the_tests_of_reading_pass_elsewhere(
    tmp_path: Path, system: str, left_out: tuple[str, ...]
) -> None:
    files = [f"tests/featurestore/{name}" for name in READING]
    options = ["-p", "plugin", "-p", "no:cacheprovider", "-q", "--tb=short", "--durations=5"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # libraries have plugins
    chosen = ["-k", f"not ({' or '.join(left_out)})", f"--basetemp={tmp_path / 'base'}"]
    done = run(system, ["-m", "pytest", *options, *chosen, *files], tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    print(done.stdout)
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 60


BUILD = """
import sys
import click, filelock, PIL.Image, rich.console, rich.progress, tokenizers  # not this project's
import manyviews
from manyviews.main import run_command
store, folder = sys.argv[1:]
def code(*arguments):
    try:
        return run_command(list(arguments))
    except SystemExit as e:
        return e.code
for arguments in (
    ["build", "--data-dir", folder, "--store", folder + "/new"],
    ["check", "--data-dir", folder],
    ["verify", "--store", store, "--repair"],
    ["materialize", "--store", store, "--out-dir", folder + "/out"],
    ["status", "--store", store],
    ["verify", "--store", store],
):
    print("code", arguments[0], code(*arguments))
"""


@pytest.mark.parametrize(("system", "writes"), [("macOS", True), ("Windows", False)])
def test_commands_that_write_name_the_system(tmp_path: Path, system: str, writes: bool) -> None:
    make_store(tmp_path / "s")
    (tmp_path / "data").mkdir()
    done = run(system, ["-c", BUILD, str(tmp_path / "s"), str(tmp_path / "data")], tmp_path)
    assert done.returncode == 0, done.stderr
    codes = re.findall(r"code (\w+) (\d+)", done.stdout)
    written = "0" if writes else "2"
    assert codes == [
        *(("build", "2"), ("check", "2"), ("verify", written), ("materialize", written)),
        *(("status", "0"), ("verify", "0")),
    ]
    refused = re.findall(rf"Error: (.*) needs Linux, and this is {system}", done.stderr)
    assert len(refused) == (2 if writes else 4), done.stderr
    assert refused[:2] == ["A build", "A build"]
    assert not (tmp_path / "data/new").exists()


# --- the chunks that numpy.memmap maps ---


_Blocks = tuple[npt.NDArray[np.float32], ChunkFiles, ChunkedBlocks]


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    samples, views, dim = shape
    return samples, views, dim


@pytest.fixture
def blocks(tmp_path: Path) -> _Blocks:
    """Rows of a store, and what reads its chunks without Linux."""
    rows = make_store(tmp_path / "s")["clip_image"]
    array = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    files = ChunkFiles(tmp_path / "s", array, range(3))
    return rows, files, ChunkedBlocks(files.read, _three(array.shape), 4, files.kept_bytes)


def test_the_same_bytes_as_the_mapper(tmp_path: Path, blocks: _Blocks) -> None:
    _, _, source = blocks
    mapped = store_rows(FeatureStore(tmp_path / "s"), "clip_image", None).source
    samples, pairs = np.array([9, 0, 3, 9, 10]), np.array([[0, 1], [3, 2], [1, 1], [2, 0], [0, 3]])
    for view in (0, pairs[:, 0], pairs, None):
        assert source.take(samples, view).tobytes() == mapped.take(samples, view).tobytes()
    for sample, view in ((11, 0), (-1, 0), (0, 4), (0, -1)):
        for each in (source, mapped):
            with pytest.raises(IndexError, match="samples 0 to 10 and views 0 to 3"):
                each.take(np.array([sample]), view)


def test_few_files_stay_mapped(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s", samples=80, views=1, chunk=1, dims={"clip_image": 1024})
    array = FeatureStore(tmp_path / "s").spec.feature("clip_image")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        files = ChunkFiles(tmp_path / "s", array, range(80))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    source = ChunkedBlocks(files.read, _three(array.shape), 1, files.kept_bytes)
    np.testing.assert_array_equal(source.take(np.arange(80), 0), rows["clip_image"][:, 0])
    assert Path("/proc/self/maps").read_text().count(f"{tmp_path}/") == 32


def test_what_is_read_cannot_be_written(blocks: _Blocks) -> None:
    with pytest.raises(ValueError, match="read-only"):
        blocks[1].read(0)[0] = 0


@pytest.mark.parametrize("size", [0, 4099, 4101])
def test_a_file_of_another_size(tmp_path: Path, blocks: _Blocks, size: int) -> None:
    _, files, source = blocks
    with (tmp_path / "s/clip_image/c.1.0.0").open("r+b") as file:
        file.truncate(size)
    expected = f"{size} bytes, expected 4100"
    with pytest.raises(CorruptStoreError, match=expected):
        source.take(np.array([5]), 0)
    with pytest.raises(CorruptStoreError, match=expected):
        ChunkFiles(tmp_path / "s", files._spec, range(3))


def test_a_missing_file_and_a_link_to_itself(tmp_path: Path, blocks: _Blocks) -> None:
    _, files, _ = blocks
    chunk = tmp_path / "s/clip_image/c.2.0.0"
    chunk.unlink()
    for read in (lambda: files.read(2), lambda: ChunkFiles(tmp_path / "s", files._spec, [2])):
        with pytest.raises(CorruptStoreError, match="missing"):
            read()
    chunk.symlink_to(chunk)
    with pytest.raises(StorageError, match="symbolic links"):
        files.read(2)


def test_replaced_rows_are_never_mixed_with_earlier_ones(tmp_path: Path, blocks: _Blocks) -> None:
    rows, _, source = blocks
    changed = {name: values + 1 for name, values in make_store(tmp_path / "other").items()}
    np.testing.assert_array_equal(source.take(np.array([0]), 0), rows[:1, 0])
    remake(tmp_path / "s", 0, changed)
    remake(tmp_path / "s", 1, changed)
    np.testing.assert_array_equal(source.take(np.array([0]), 0), rows[:1, 0])  # still mapped
    with pytest.raises(InputError, match=r"replaced since it was opened.\nOpen it again"):
        source.take(np.array([5]), 0)
