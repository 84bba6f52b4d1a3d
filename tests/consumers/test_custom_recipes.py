"""Builds whose views are made by functions of the user, in real producers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consumers.build import build
from consumers.config import BuildConfig
from consumers.config_file import read_toml
from consumers.workers.transport import config_of, config_values
from featurestore.errors import ConfigError, RecipeError, StoreMismatchError
from featurestore.storage.store import FeatureStore
from manyviews import main
from producers.process import Traceback
from tests import warm
from tests.conftest import ROOT, tree_digest

SAMPLES, CHUNK, VIEWS = 12, 4, 8
TOML = """
views = 8
chunk = 4
features = ["clip_image", "clip_text"]

[collection]
kind = "folder"
path = "data"

[recipe.image]
name = "augment:image"

[recipe.text]
name = "augment:text"
"""
TEXTS = TOML.replace('[recipe.image]\nname = "augment:image"\n', "").replace('"clip_image", ', "")
AUGMENT = """
import random
import time
from pathlib import Path

import numpy as np
from helper import turned

GATE = Path(__file__).with_name("gate")


def image(image, rng):
    return turned(image, rng.uniform(-30, 30))


def text(text, rng):
    while "third chunk" in text and GATE.exists():
        time.sleep(0.01)
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)
"""
HELPER = """
def turned(image, degrees):
    return image.rotate(degrees)
"""
Configure = Callable[..., BuildConfig]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a collection, a TOML file, and the module that it names."""
    (tmp_path / "data").mkdir()
    for number in range(SAMPLES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/s{number:02}.png")
        chunk = ("first", "second", "third")[number // CHUNK]
        (tmp_path / f"data/s{number:02}.txt").write_text(f"sample {number} of the {chunk} chunk")
    write(tmp_path, AUGMENT)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "views.toml").write_text(TOML)
    return tmp_path


def write(place: Path, code: str) -> None:
    (place / "augment.py").write_text(code)


@pytest.fixture
def configure(place: Path, checkpoints: dict[str, str]) -> Configure:
    models = {name: checkpoints[name] for name in ("clip_image", "clip_text")}

    def configure(**changes: Any) -> BuildConfig:
        values = read_toml(place / "views.toml")
        values |= {"store": place / "store", "models": models, "device": "cpu", "producers": 1}
        return BuildConfig(**(values | changes))

    return configure


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.usefixtures("unsynced")
def test_a_killed_build_is_resumed_byte_for_byte_and_with_no_other_source(
    place: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = configure(store=place / "golden")
    build(golden)
    store = place / "store"
    (place / "gate").touch()
    models = configure().models
    typed = [sys.executable, str(ROOT / "cli.py"), "build", "--config", str(place / "views.toml")]
    typed += ["--store", str(store), "--device", "cpu", "--producers", "1", "--slots", "2"]
    typed += [part for name, model in models.items() for part in ("--model", f"{name}={model}")]
    with warm.Popen(typed, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        wait_for(lambda: process.poll() is not None or committed(store))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.communicate()
    done = committed(store)
    assert 1 <= done <= 2
    (place / "gate").unlink()

    killed = tree_digest(store)
    write(place, AUGMENT.replace("30", "31"))
    with pytest.raises(StoreMismatchError, match=r"image_recipe\.sha256\.augment(?s:.)*restore"):
        build(configure(resume=True))
    write(place, AUGMENT)
    (place / "helper.py").write_text(HELPER + "#")
    with pytest.raises(StoreMismatchError, match=r"image_recipe\.sha256\.helper(?s:.)*restore"):
        build(configure(resume=True))
    (place / "helper.py").write_text(HELPER)
    # Without the file, the module is found on the Python path or not at all.
    with pytest.raises(ConfigError, match=r"made by augment:image(?s:.)*--config"):
        build(configure(resume=True, image_recipe=None, text_recipe=None))
    assert tree_digest(store) == killed

    monkeypatch.syspath_prepend(str(place))
    report = build(configure(resume=True, image_recipe=None, text_recipe=None))
    assert report.built == SAMPLES - CHUNK * done
    assert tree_digest(store) == tree_digest(place / "golden")
    assert_views_differ(store)
    replay(place, golden)


def committed(store: Path) -> int:
    ledger = store / "records/ledger.jsonl"
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def assert_views_differ(store: Path) -> None:
    opened = FeatureStore(store)
    assert opened.complete
    assert not opened.bad_inputs
    for name in opened.features:
        rows = opened.read_chunk(name, 0)
        assert all(len(np.unique(views, axis=0)) > 1 for views in rows)


def replay(place: Path, config: BuildConfig) -> None:
    """The views of a store are replayed, and not by another source."""
    typed = ["views", "--store", str(config.store), "--config", str(place / "views.toml")]
    typed += ["--id", "s03", "--json"]
    assert main.run_command(typed) == 0
    write(place, AUGMENT.replace("30", "31"))
    assert main.run_command(typed) != 0


FAULTS = """
import os, time
from featurestore.errors import BadSampleError

def text(text, rng):
    print("a line from the function")
    number = int(text.split()[1])
    if number == 2:
        time.sleep(10_000)
    if number == 3:
        bytearray(10 << 30)
    if number == 4:
        os._exit(7)
    if number == 5:
        raise BadSampleError("dull", "nothing happens")
    return text.upper()
"""


@pytest.mark.usefixtures("unsynced")
def test_what_a_function_does_to_one_sample_costs_no_other(
    place: Path, configure: Configure
) -> None:
    write(place, FAULTS)
    (place / "views.toml").write_text(TEXTS)
    build(configure(sample_timeout_s=6.0))
    store = FeatureStore(place / "store")
    found = {bad.index: (bad.reason, bad.detail) for bad in store.bad_inputs}
    assert found.keys() == {2, 3, 4, 5}
    assert found[2] == ("timeout", "no result within 6 s, 2 times")
    assert found[3] == ("out-of-memory", "more than 4 GiB for one sample")
    assert found[4] == ("killed", "the decoder was ended by exit status 7, 2 times")
    assert found[5] == ("dull", "nothing happens")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise KeyError('sun')", r"raised KeyError: 'sun' \(.*augment\.py, line 3\)"),
        ("return None", "returned NoneType, not a str"),
    ],
)
@pytest.mark.usefixtures("unsynced")
def test_a_function_that_fails_stops_the_build(
    place: Path, configure: Configure, code: str, problem: str
) -> None:
    write(place, f"def text(text, rng):\n    if '6' in text:\n        {code}\n    return text\n")
    (place / "views.toml").write_text(TEXTS)
    with pytest.raises(RecipeError, match=f"Sample 's06': the recipe augment:text {problem}") as e:
        build(configure())
    assert e.value.stem == "s06"
    assert isinstance(e.value.__cause__, Traceback)
    assert "raise RecipeError" in str(e.value.__cause__)
    assert ("augment.py" in str(e.value.__cause__)) == code.startswith("raise")


def test_a_recipe_reaches_workers_with_its_folder(configure: Configure) -> None:
    config = configure()
    assert config_of(config_values(config)) == config
