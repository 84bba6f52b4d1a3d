"""Training, FLOP counting and evaluation give the numbers of a datamodule that is all in memory.

From files and from the store, with the import line changed only, and with NumPy 1.26 too, which
the published environment and shimmer ask for.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
THEIRS = "from dataset_1x_aug70 import "
OURS = "from featurestore.datamodule import "
OLDER_NUMPY = "1.26.4"

# Two lines that docs/training.md asks for beside a CPU build of torch, then scripts and sources.
RUN = """
from featurestore.torchvision_ops import ensure_importable
ensure_importable()
import os, runpy, sys
import numpy
print(numpy.__version__)
for script, source in zip(sys.argv[1::2], sys.argv[2::2]):
    os.environ["OTHER_BACKBONES_DIR_IMDB1_AUG70"] = source
    runpy.run_path(script, run_name="__main__")
"""


def run_all(built, folder, *paths):
    """What the script prints, of the datamodule in memory, of ours on files, and on the store."""
    script = (HERE / "published_evaluation.py").read_text()
    assert script.count(THEIRS) == 1
    (folder / "theirs.py").write_text(script)
    (folder / "ours.py").write_text(script.replace(THEIRS, OURS))
    shutil.copy(HERE / "in_memory.py", folder / "dataset_1x_aug70.py")
    variables = {
        "IMDB1_LABELS_DIR_23": built / "labels",
        "MMIMDB1_DIR": built / "imdb",
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "OMP_NUM_THREADS": 1,
    }
    runs = [("theirs.py", "embeddings"), ("ours.py", "embeddings"), ("ours.py", "features")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN]
        + [str(word) for script, source in runs for word in (script, built / source)],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    numpy, *lines = done.stdout.splitlines()
    scores = [json.loads(line) for line in lines]
    return numpy, scores[:2], scores[2:4], scores[4:]


def assert_equal_and_learned(in_memory, files, store):
    assert files == in_memory
    assert store == in_memory
    assert [each["backbone"] for each in in_memory] == ["clip", "blip2"]
    for each in in_memory:
        assert len(each["losses"]) == 12
        assert each["losses"][-1] < 0.8 * each["losses"][0]
        assert each["flops"] > 10_000
        assert each["macro_f1_test"] > 0


def test_files_and_store_give_the_numbers_of_tensors_in_memory(built, tmp_path):
    _, *scores = run_all(built, tmp_path)
    assert_equal_and_learned(*scores)


@pytest.fixture(scope="module")
def older_numpy(tmp_path_factory):
    """A folder with NumPy 1.26, to be found before the installed one."""
    if sys.version_info >= (3, 13):
        pytest.skip("NumPy 1.26 was never built for this Python")
    folder = tmp_path_factory.mktemp("numpy")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", folder]
    done = subprocess.run(
        [*install, f"numpy=={OLDER_NUMPY}"], capture_output=True, text=True, timeout=300
    )
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"pip could not install NumPy {OLDER_NUMPY}: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_numpy_1_reads_the_same(built, tmp_path, older_numpy):
    numpy, *scores = run_all(built, tmp_path, older_numpy)
    assert numpy == OLDER_NUMPY
    assert_equal_and_learned(*scores)
