"""What tests of several packages share: demo data, tiny checkpoints, and a look at folders."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests that a shell runs in the background ignore Ctrl-C, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What the surroundings may have said must not decide: colours, widths, and other checkpoints.
for _name in (
    *("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"),
    *("CLIP_MODEL_ID_IMG", "CLIP_MODEL_ID_TXT", "BLIP2_MODEL_ID"),
):
    os.environ.pop(_name, None)

# A store knows how many threads made it, and builds are compared with those of other processes.
os.environ["OMP_NUM_THREADS"] = "1"

# What is remembered of weights is the tests' own, and nothing of it stays.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="manyviews-tests-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# The same examples in every run but the nightly ones, and no limit on the time that one takes: what
# a noisy machine does must not decide. Hypothesis itself chooses by whether CI is set.
settings.register_profile(
    "manyviews",
    deadline=None,
    derandomize=os.environ.get("MANYVIEWS_TEST_PROFILE") != "nightly",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("manyviews")


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``dataset/`` (48 samples and the quirks) and ``split.json``; read only."""
    from manyviews.operations.demo.data import make_demo_data

    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny checkpoint of every feature, as ``BuildConfig.models`` wants it; read only."""
    from manyviews.operations.demo.checkpoints import make_checkpoints

    made = make_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    kinds = {"clip_image": "clip", "clip_text": "sentence"}
    kinds |= {"blip2_image": "blip2", "blip2_text": "blip2"}
    return {feature: str(made[kind]) for feature, kind in kinds.items()}


@pytest.fixture(scope="session")
def demo_store(
    demo_data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An undisturbed build of the demo data: four features, four views, three chunks; read only."""
    from consumers.build import build
    from consumers.config import BuildConfig

    store = tmp_path_factory.mktemp("golden") / "store"
    config = BuildConfig(
        data_dir=demo_data / "dataset",
        store=store,
        models=checkpoints,
        device="cpu",
        workers=2,
        views=4,
        chunk=16,
    )
    build(config)
    return store


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sync reaches the disk: a killed process loses nothing that it wrote, and kills are many.

    What a power cut loses is the matter of ``tests/faults/test_power_loss.py``.
    """
    monkeypatch.setattr(os, "fsync", os.fstat)


def tree_digest(folder: Path, *, mtimes: bool = False) -> dict[str, str]:
    """What each file of a folder holds, by relative name; logs and lock are left out.

    An empty folder counts too; one that does not exist is not the same as an empty one.
    """
    if not folder.exists():
        return {"": "absent"}
    found = {"": "folder"}
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_dir() and not path.is_symlink():
            inner = tree_digest(path, mtimes=mtimes)
            found |= {f"{name}/{key}": value for key, value in inner.items()}
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if mtimes:
                found[name] += f" {path.stat().st_mtime_ns}"
    return {key: value for key, value in found.items() if "records/runs/" not in key}
