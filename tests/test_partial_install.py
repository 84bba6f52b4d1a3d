"""Reading, verifying and training without the libraries that only a build needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What `pip install --no-deps manyviews` leaves out, beside the few packages that reading needs.
_BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
BUILD_ONLY = (
    *("transformers", "sentence_transformers", "torchvision", "tokenizers", "PIL"),
    *("sklearn", "jinja2", "matplotlib", "lightning", "huggingface_hub"),
)

_READ = """
import json
from manyviews import DeviceBatches, FeatureBatchSampler, FeatureDataset, FeatureStore, Shuffle
from manyviews import status, verify

dataset = FeatureDataset({store!r}, views="random", bad_samples="include")
sampler = FeatureBatchSampler(dataset, 5, shuffle=Shuffle(seed=1))
seen = [int(i) for batch in DeviceBatches(dataset, sampler, "cpu") for i in batch["index"]]
assert sorted(seen) == list(range(len(FeatureStore({store!r}).stems)))
print(json.dumps([len(verify({store!r}).findings), status({store!r}).ended]))
"""


def run(
    code: str, *arguments: str, blocked: tuple[str, ...] = BUILD_ONLY
) -> subprocess.CompletedProcess[str]:
    """Runs a program in which these packages cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED.format(blocked=blocked) + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_a_store_is_read_verified_and_trained_from(demo_store: Path) -> None:
    done = run(_READ.format(store=str(demo_store)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, "complete"]


@pytest.mark.parametrize(
    ("arguments", "module", "package"),
    [
        ("check --data-dir {data} --device cpu", "tokenizers", "tokenizers"),
        ("views --data-dir {data} --stem {stem}", "PIL", "pillow"),
    ],
)
def test_a_command_names_the_package_that_it_lacks(
    demo_data: Path, arguments: str, module: str, package: str
) -> None:
    data = demo_data / "dataset"
    stem = sorted(path.stem for path in data.glob("*.json"))[1]
    typed = arguments.format(data=data, stem=stem).split()
    done = run("from manyviews.main import main; main()", *typed, blocked=(module,))
    assert done.returncode == 2, done.stderr
    assert f"needs the package {package}, which is not installed" in done.stderr


def test_status_and_verify_run_without_them(demo_store: Path) -> None:
    for command in ("status", "verify"):
        done = run("from manyviews.main import main; main()", command, "--store", str(demo_store))
        assert done.returncode in (0, 3), done.stderr
