"""Training, FLOP counting and evaluation give the numbers of an in-memory datamodule.

The data come from files and from the store, with only the import line changed; also with NumPy
1.26, which the published environment and shimmer require.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conftest import ROOT

HERE = Path(__file__).parent
THEIRS = "from dataset_1x_aug70 import "
OURS = "from featurestore.datamodule import "
OLDER_NUMPY = "1.26.4"

# Two lines that docs/training.md requires with a CPU build of torch, then scripts and sources.
RUN = """
from featurestore.system.torchvision_ops import ensure_importable
ensure_importable()
import json, os, runpy, sys
import numpy
print(numpy.__version__)
runs, families = json.loads(sys.argv[1]), sys.argv[2:]
for script, source in runs:
    os.environ["OTHER_BACKBONES_DIR_IMDB1_AUG70"] = source
    sys.argv = [script, *families]
    runpy.run_path(script, run_name="__main__")
"""
# The rows alone, without training.
READ = """
import hashlib, json, sys
import numpy
from featurestore import FeatureDataset
dataset = FeatureDataset(sys.argv[1], views="all")
rows = dataset.batch(list(range(len(dataset))))
names = ("clip_image", "clip_text", "blip2_image", "blip2_text")
digest = hashlib.sha256(b"".join(rows[name].numpy().tobytes() for name in names)).hexdigest()
print(numpy.__version__, digest)
"""
# The datamodule in memory can read files only.
IN_MEMORY = ("theirs.py", "embeddings")
FILES, STORE = ("ours.py", "embeddings"), ("ours.py", "features")
Found = tuple[str, list[list[dict[str, Any]]]]


def run_all(
    built: Path,
    folder: Path,
    runs: list[tuple[str, str]],
    families: list[str],
    numpy_of: Path | None = None,
) -> Found:
    """NumPy's version, and the output of each run for each family.

    With the NumPy in the folder ``numpy_of``, or the installed one.
    """
    script = (HERE / "published_evaluation.py").read_text()
    assert script.count(THEIRS) == 1
    (folder / "theirs.py").write_text(script)
    (folder / "ours.py").write_text(script.replace(THEIRS, OURS))
    shutil.copy(HERE / "in_memory.py", folder / "dataset_1x_aug70.py")
    variables = {
        "IMDB1_LABELS_DIR_23": built / "labels",
        "MMIMDB1_DIR": built / "imdb",
        "PYTHONPATH": f"{numpy_of}{os.pathsep}{ROOT}" if numpy_of else ROOT,
    }
    runs = [(script, str(built / source)) for script, source in runs]
    start = subprocess.run if numpy_of else warm.run  # which has imported the installed NumPy
    done = start(
        [sys.executable, "-c", RUN, json.dumps(runs), *families],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    numpy, *lines = done.stdout.splitlines()
    scores = [json.loads(line) for line in lines]
    each = len(families)
    return numpy, [scores[start : start + each] for start in range(0, len(scores), each)]


def assert_equal_and_learned(
    in_memory: list[dict[str, Any]], *others: list[dict[str, Any]]
) -> None:
    for other in others:
        assert other == in_memory
    for scores in in_memory:
        assert sum(scores["losses"][-5:]) < 0.8 * sum(scores["losses"][:5])
        assert scores["flops"] > 10_000
        assert min(scores["n_val"], scores["n_test"]) > 0
        assert scores["macro_f1_test"] > 0


@pytest.fixture(scope="module")
def installed_numpy(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Three runs with the installed NumPy."""
    runs = [IN_MEMORY, FILES, STORE]
    return run_all(built, tmp_path_factory.mktemp("installed"), runs, ["clip", "blip2"])


def test_files_and_store_give_the_numbers_of_tensors_in_memory(installed_numpy: Found) -> None:
    _, found = installed_numpy
    assert [[scores["backbone"] for scores in each] for each in found] == 3 * [["clip", "blip2"]]
    assert_equal_and_learned(*found)


@pytest.fixture(scope="module")
def older_numpy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NumPy 1.26, to be placed before the installed one on the path."""
    if sys.version_info >= (3, 13):
        pytest.skip("NumPy 1.26 was never built for this Python")
    folder = tmp_path_factory.mktemp("numpy")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
    done = subprocess.run(
        [*install, f"numpy=={OLDER_NUMPY}"], capture_output=True, text=True, timeout=300
    )
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"pip could not install NumPy {OLDER_NUMPY}: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_numpy_1_reads_the_same(built: Path, older_numpy: Path) -> None:
    digests: dict[str, str] = {}
    ways: tuple[tuple[Any, str], ...]
    ways = ((warm.run, f"{ROOT}"), (subprocess.run, f"{older_numpy}{os.pathsep}{ROOT}"))
    for start, place in ways:
        done = start(
            [sys.executable, "-c", READ, str(built / "features")],
            env=os.environ | {"PYTHONPATH": place},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        numpy, digest = done.stdout.split()
        digests[numpy] = digest
    assert OLDER_NUMPY in digests
    assert len(digests) == 2
    assert len(set(digests.values())) == 1


@pytest.mark.nightly
def test_numpy_1_gives_the_same_numbers(
    built: Path, tmp_path: Path, older_numpy: Path, installed_numpy: Found
) -> None:
    numpy, found = run_all(built, tmp_path, [STORE], ["clip"], older_numpy)
    assert numpy == OLDER_NUMPY
    assert found == [installed_numpy[1][2][:1]]
