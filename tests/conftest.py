"""Fixtures of several packages: demo data, tiny checkpoints, and digests of folders."""

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
# Whether each fault test takes many more rounds, and the tests marked ``nightly`` run as well.
NIGHTLY = os.environ.get("MANYVIEWS_TEST_PROFILE") == "nightly"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes background processes ignore Ctrl-C, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Variables of the environment must not affect tests: colours, widths, and checkpoints.
for _name in (
    *("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"),
    *("CLIP_MODEL_ID_IMG", "CLIP_MODEL_ID_TXT", "BLIP2_MODEL_ID"),
):
    os.environ.pop(_name, None)

# A store records its number of threads, and builds of several processes are compared.
os.environ["OMP_NUM_THREADS"] = "1"

# The cache of weight digests is in a temporary folder.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="manyviews-tests-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Equal examples in every run except nightly ones, and no time limit per example, because a busy
# machine must not affect results. Hypothesis itself chooses by the variable CI.
settings.register_profile(
    "manyviews",
    deadline=None,
    derandomize=not NIGHTLY,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("manyviews")


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``dataset/`` (48 samples with irregularities) and ``split.json``; read only."""
    from manyviews.operations.demo.data import make_demo_data

    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny checkpoint of every feature, for ``BuildConfig.models``; read only."""
    from manyviews.operations.demo.checkpoints import make_checkpoints

    made = make_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    kinds = {"clip_image": "clip", "clip_text": "sentence"}
    kinds |= {"blip2_image": "blip2", "blip2_text": "blip2"}
    return {feature: str(made[kind]) for feature, kind in kinds.items()}


@pytest.fixture(scope="session")
def demo_store(
    demo_data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store of the demo data: four features, four views, three chunks; read only."""
    from consumers.build import build
    from consumers.config import BuildConfig

    store = tmp_path_factory.mktemp("golden") / "store"
    config = BuildConfig(
        data_dir=demo_data / "dataset",
        store=store,
        models=checkpoints,
        device="cpu",
        producers=2,
        views=4,
        chunk=16,
    )
    build(config)
    return store


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns fsync off, for speed: a killed process loses nothing that it wrote.

    ``tests/faults/test_power_loss.py`` tests what a power cut loses.
    """
    monkeypatch.setattr(os, "fsync", os.fstat)


def tree_digest(folder: Path, *, mtimes: bool = False) -> dict[str, str]:
    """The digest of each file of a folder by relative name, except logs and the lock.

    Empty folders are included; a missing folder differs from an empty one.
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
