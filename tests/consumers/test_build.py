"""Whole builds: features, bytes after a kill, refused inputs and options, and hostile names."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from consumers.backbones import registry
from consumers.build import build
from consumers.config import BuildConfig
from consumers.engine.batching import TextBatcher
from featurestore.errors import (
    BadInputsError,
    ConfigError,
    InputError,
    ManyViewsError,
    StoreLockedError,
    StoreMismatchError,
)
from featurestore.imdb.labels import write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.records import FEATURES, view_seed
from featurestore.storage.store import FeatureStore
from tests import warm
from tests.conftest import ROOT, tree_digest

# Three chunks of 16 of the 48 demo samples for all features; 6 chunks of 4 of half of them for text
# alone.
ALL: dict[str, Any] = {"views": 4, "chunk": 16}
TEXT: dict[str, Any] = {"views": 8, "chunk": 4, "features": ("blip2_text",)}
TEXTS = 24
CLI = [sys.executable, str(ROOT / "cli.py")]

Configure = Callable[..., BuildConfig]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def short_texts(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the demo with a few words of each synopsis, so that embedding is fast."""
    folder = tmp_path_factory.mktemp("short") / "dataset"
    copy_pairs(demo_data / "dataset", folder, slice(TEXTS))
    for path in folder.glob("*.json"):
        document = json.loads(path.read_bytes())
        words = " ".join(document["plot"]).split()
        path.write_text(json.dumps(document | {"plot": [" ".join(words[: 3 + len(words) % 9])]}))
    return folder


@pytest.fixture(scope="session")
def configure(demo_data: Path, short_texts: Path, checkpoints: dict[str, str]) -> Configure:
    """A build of the demo data with the tiny checkpoints; of short texts alone by default."""

    def make(store: Path, **changes: Any) -> BuildConfig:
        data = demo_data / "dataset" if "clip_image" in changes.get("features", ()) else short_texts
        values: dict[str, Any] = {"data_dir": data, "models": checkpoints}
        values |= {"device": "cpu", "producers": WORKERS, **TEXT, **changes}
        return BuildConfig(store=store, **values)

    return make


@pytest.fixture(scope="session")
def golden(demo_store: Path) -> Path:
    """An uninterrupted build of all features with the options ``ALL``."""
    return demo_store


@pytest.fixture(scope="session")
def golden_text(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted build of the text feature."""
    store = tmp_path_factory.mktemp("golden") / "text"
    build(configure(store))
    return store


@pytest.fixture
def some_data(short_texts: Path, tmp_path: Path) -> Path:
    """A data folder of eight good pairs that a test may change."""
    return copy_pairs(short_texts, tmp_path / "data", slice(5, 13))


def copy_pairs(data: Path, folder: Path, which: slice) -> Path:
    """A data folder of some of the pairs of another."""
    folder.mkdir()
    names = sorted(p.stem for p in data.glob("*.json"))[which]
    for name in names:
        for source in data.glob(f"{name}.*"):
            shutil.copy(source, folder / source.name)
    assert len(list(folder.iterdir())) == 2 * len(names)
    return folder


def _replace(config: BuildConfig, **changes: Any) -> BuildConfig:
    values = {name: getattr(config, name) for name in BuildConfig.__dataclass_fields__}
    return BuildConfig(**values | changes)


def arguments(config: BuildConfig, *more: str) -> list[str]:
    """The command that a user would type for ``config``."""
    assert config.features is not None
    typed = [*CLI, "build", "--data-dir", str(config.data_dir), "--store", str(config.store)]
    typed += ["--views", str(config.views), "--chunk", str(config.chunk)]
    typed += ["--features", ",".join(config.features), "--producers", str(config.producers)]
    typed += ["--device", "cpu", *more]
    if config.slots:
        typed += ["--slots", str(config.slots)]
    for name in config.features:
        typed += ["--model", f"{name}={config.models[name]}"]
    return typed


# The numbers ------------------------------------------------------------------------------------


def augmented(poster: Image.Image, index: int) -> list[Image.Image]:
    """Views 1.. of the recipe, implemented with torchvision and the published seeds."""
    from torchvision import transforms as tv

    recipe = tv.Compose(
        [
            tv.RandomResizedCrop(
                224, scale=(0.08, 1.0), interpolation=tv.InterpolationMode.BICUBIC
            ),
            tv.RandomHorizontalFlip(p=0.5),
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([tv.GaussianBlur(23, sigma=(0.1, 2.0))], p=0.5),
        ]
    )
    views = []
    with torch.random.fork_rng(devices=[]):
        for view in range(1, ALL["views"]):
            torch.manual_seed(view_seed(123, index, view, "image"))
            views.append(recipe(poster))
    return views


def masked(text: str, index: int) -> list[str]:
    views = []
    for view in range(1, ALL["views"]):
        words = text.split()
        order = list(range(len(words)))
        random.Random(view_seed(123, index, view, "text")).shuffle(order)
        for i in order[: max(1, int(round(0.15 * len(words))))]:  # noqa: RUF046  as published
            words[i] = "[MASK]"
        views.append(" ".join(words))
    return views


def sample_inputs(data: Path, index: int) -> tuple[list[Image.Image], list[str]]:
    """The views of one sample, computed without the project's code except the seeds' formula."""
    stem = sorted(p.stem for p in data.glob("*.json"))[index]
    (path,) = (p for p in data.glob(f"{stem}.*") if p.suffix != ".json")
    try:
        with Image.open(path) as opened:
            poster = opened.convert("RGB")
    except OSError:
        poster = Image.new("RGB", (224, 224))
    text = " ".join(json.loads((data / f"{stem}.json").read_bytes())["plot"])
    return [poster, *augmented(poster, index)], [text, *masked(text, index)]


def naive(feature: str, folder: str, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """One feature of one sample's views, one view at a time through the plain model class."""
    import transformers
    from sentence_transformers import SentenceTransformer

    if feature == "clip_text":
        model = SentenceTransformer(folder, device="cpu")
        return np.stack([model.encode([t], show_progress_bar=False)[0] for t in texts])
    kind = transformers.CLIPModel if feature == "clip_image" else transformers.Blip2Model
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        if feature == "blip2_text":
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            for text in texts:
                inputs = tokenizer([text], truncation=True, max_length=512, return_tensors="pt")
                states = model.language_model.encoder(**inputs).last_hidden_state[0]
                rows.append(states.mean(dim=0))
        else:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
            for image in images:
                inputs = processor(images=image, return_tensors="pt")
                if feature == "clip_image":
                    rows.append(model.get_image_features(**inputs).pooler_output[0])
                else:
                    rows.append(model.get_qformer_features(**inputs).mean(dim=1)[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("feature", ["clip_image", "clip_text", "blip2_image", "blip2_text"])
def test_every_row_equals_a_naive_call(
    golden: Path, demo_data: Path, checkpoints: dict[str, str], feature: str
) -> None:
    store = FeatureStore(golden)
    rows = np.concatenate([store.read_chunk(feature, c) for c in range(store.spec.chunks)])
    assert rows.shape == (48, ALL["views"], store.spec.dims[feature])
    spread = rows.reshape(-1, rows.shape[2]).std(axis=0)
    modality = feature.partition("_")[2]
    bad = [b.index for b in store.bad_inputs if b.modality == modality]
    # The first, the last, both sides of a chunk's border, and the one with a placeholder.
    for index in sorted({0, 15, 16, 47, *bad}):
        expected = naive(
            feature, checkpoints[feature], *sample_inputs(demo_data / "dataset", index)
        )
        assert (np.abs(rows[index] - expected) / spread).max() <= 2e-5
    # Random weights are spread enough for this to mean something.
    assert (spread > 0.01 * np.abs(rows).mean()).all()


def test_the_quirks_are_recorded(golden: Path, demo_data: Path) -> None:
    store = FeatureStore(golden)
    assert store.complete
    assert [(b.modality, b.reason) for b in store.bad_inputs] == [("image", "truncated")]
    assert store.stems == sorted(p.stem for p in (demo_data / "dataset").glob("*.json"))
    assert sum(record.words == 0 for record in store.records) == 1


# The bytes --------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_workers_and_slots_change_nothing(
    golden: Path, configure: Configure, tmp_path: Path
) -> None:
    features = tuple(FeatureStore(golden).features)
    config = configure(tmp_path / "s", features=features, **ALL | {"producers": 3, "slots": 2})
    build(config)
    assert tree_digest(tmp_path / "s") == tree_digest(golden)


@pytest.mark.parametrize(("workers", "slots"), [(1, 1), (3, 9)])
def test_nor_do_they_for_text(
    golden_text: Path, configure: Configure, tmp_path: Path, workers: int, slots: int
) -> None:
    build(configure(tmp_path / "s", producers=workers, slots=slots))
    assert tree_digest(tmp_path / "s") == tree_digest(golden_text)


def test_a_finished_build_has_nothing_to_do(golden: Path, configure: Configure) -> None:
    before = tree_digest(golden, mtimes=True)
    features = tuple(FeatureStore(golden).features)
    report = build(configure(golden, features=features, resume=True, **ALL))
    assert (report.built, report.samples) == (0, 48)
    assert tree_digest(golden, mtimes=True) == before
    assert not list(golden.rglob("*.partial"))


def test_overwrite_builds_the_same_again(
    golden: Path, configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    store, new = tmp_path / "s", tmp_path / "new"
    plain = build(configure(tmp_path / "plain", data_dir=some_data)).store
    shutil.copytree(golden, store)  # of other features, views, chunks and samples
    build(configure(store, data_dir=some_data, overwrite=True))
    assert tree_digest(store) == tree_digest(plain)
    build(configure(new, data_dir=some_data, overwrite=True))  # nothing there: as without it
    assert tree_digest(new) == tree_digest(plain)


def lines(store: Path) -> int:
    ledger = store / "records" / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.is_file() else 0


# Producers that stop at a gate, so that a build can be met in its middle, however slow or fast the
# machine is. A sample is started only when all but ``slots`` of those before it are taken: until
# the first chunk is complete, only its samples and those of the other slots are started.
GATE = """
import os, time
from producers import decode
from tests import forked

forked.install()

honest, folder = decode.text, os.path.dirname(__file__)


def text(data):
    for number in range({open}):
        try:
            os.close(os.open(os.path.join(folder, str(number)), os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            pass
    else:
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)
    return honest(data)


decode.text = text
"""
WORKERS = 2
SLOTS = 2 * WORKERS + 2  # the default
FEW_SLOTS = 4  # as many as a chunk of texts has samples: the second chunk cannot pass the gate


def gated(site: Path, chunk: int, slots: int = SLOTS) -> dict[str, str]:
    """The environment of a build whose first chunk, and maybe part of the next, passes the gate."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(GATE.format(open=chunk + slots - 1))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{site}:{ROOT}"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


def open_gate(site: Path) -> None:
    (site / "go").touch()


# As nohup: the program begins with an ignored SIGHUP.
NOHUP = """
import runpy, signal, sys

signal.signal(signal.SIGHUP, signal.SIG_IGN)
del sys.argv[0]
sys.path[0] = sys.argv[0].rpartition("/")[0] or "."
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def start(site: Path, configure: Configure) -> Iterator[Start]:
    """Starts a build in a new process group; returns after its first commit."""
    environment = gated(site, TEXT["chunk"], FEW_SLOTS)
    started: list[subprocess.Popen[str]] = []

    def run(store: Path, *, nohup: bool = False) -> subprocess.Popen[str]:
        python, *program = arguments(configure(store, slots=FEW_SLOTS))
        process = warm.Popen(
            [python, *(["-c", NOHUP] if nohup else []), *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
        started.append(process)
        wait_for(lambda: lines(store) or process.poll() is not None, 300)
        assert process.poll() is None, process.communicate()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def logged(store: Path) -> list[dict[str, Any]]:
    """The events in the log of a build that runs, without their times."""
    (log,) = (store / "records" / "runs").glob("*.log")
    whole = log.read_text().rpartition("\n")[0]
    events = [json.loads(line) for line in whole.splitlines()]
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "group", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["process", "group"]
)
def test_kill_9_and_resume(
    golden_text: Path, configure: Configure, tmp_path: Path, start: Start, group: bool
) -> None:
    store = tmp_path / "s"
    process = start(store)
    producers = psutil.Process(process.pid).children()
    assert len(producers) == 2
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: all(map(gone, producers)), 5)
    committed = lines(store)
    assert 1 <= committed <= 2
    kept = {name: value for name, value in tree_digest(store).items() if "/c." in name}
    report = build(configure(store, resume=True, producers=1))
    assert report.built == TEXTS - 4 * committed
    assert tree_digest(store) == tree_digest(golden_text)
    assert kept.items() <= tree_digest(golden_text).items()


def test_kill_9_and_resume_with_all_features(
    golden: Path, configure: Configure, tmp_path: Path, site: Path
) -> None:
    store = tmp_path / "s"
    features = ("clip_image", "clip_text", "blip2_image", "blip2_text")
    config = _replace(configure(store, features=features), **ALL)
    environment = gated(site, ALL["chunk"])
    with warm.Popen(arguments(config), stderr=subprocess.PIPE, env=environment) as process:
        wait_for(lambda: lines(store) or process.poll() is not None, 300)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert lines(store) == 1
    report = build(_replace(config, resume=True, producers=1))
    assert report.built == 32
    assert tree_digest(store) == tree_digest(golden)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.nightly),
    ],
)
def test_a_stop_signal_ends_a_build_after_the_current_chunk(
    golden_text: Path,
    configure: Configure,
    tmp_path: Path,
    site: Path,
    start: Start,
    number: int,
    code: int,
) -> None:
    store = tmp_path / "s"
    process = start(store)
    before = lines(store)
    os.killpg(process.pid, number)  # as a terminal does: the producers get it too
    name = signal.Signals(number).name
    # Acknowledged at once: the gate is closed, so no sample of the current chunk can arrive.
    wait_for(lambda: {"event": "stopping", "signal": name} in logged(store), 60)
    open_gate(site)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert output == ""
    acknowledged = "press Ctrl-C again" if number == signal.SIGINT else f"a second {name}"
    assert f"Stopping after the current chunk{';' if number == signal.SIGINT else ','}" in errors
    assert acknowledged in errors
    assert f"Stopped by {name} after {lines(store)} of 6 chunks" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert before <= lines(store) <= before + 2
    assert not list(store.rglob("*.partial"))
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden_text)


def test_ctrl_c_twice_stops_at_once(
    golden_text: Path, configure: Configure, tmp_path: Path, start: Start
) -> None:
    """The current chunk can never be completed here: only the second signal ends the build."""
    store = tmp_path / "s"
    process = start(store)
    sent = 0
    while process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        sent += 1
        assert sent <= 20, "it does not stop"
        # Two that come before the first is heard are one to the kernel: then there is a third.
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5 if sent == 1 else 15)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert sent >= 2, errors
    assert lines(store) <= 2
    assert "--resume" in errors
    assert "Traceback" not in errors
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden_text)


def test_a_build_under_nohup_does_not_hear_the_terminal_close(
    golden_text: Path, tmp_path: Path, site: Path, start: Start
) -> None:
    process = start(tmp_path / "s", nohup=True)
    os.killpg(process.pid, signal.SIGHUP)
    open_gate(site)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert tree_digest(tmp_path / "s") == tree_digest(golden_text)


def test_a_second_build_is_refused_and_the_first_unharmed(
    golden_text: Path, configure: Configure, tmp_path: Path, site: Path, start: Start
) -> None:
    store = tmp_path / "s"
    process = start(store)
    for intent in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(StoreLockedError) as caught:
            build(configure(store, **intent))
        assert caught.value.pid == process.pid
        assert f"process {process.pid} on " in str(caught.value)
        assert caught.value.exit_code == 1
    assert process.poll() is None
    open_gate(site)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert tree_digest(store) == tree_digest(golden_text)


def test_two_that_start_together_do_not_undo_each_other(
    golden_text: Path, configure: Configure, tmp_path: Path
) -> None:
    """Another process builds the whole store while this one still loads its models."""
    config = configure(tmp_path / "s")

    def be_overtaken(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "loading":
            build(config)

    with pytest.raises(InputError, match="Another process created"):
        build(config, [be_overtaken])
    assert tree_digest(config.store) == tree_digest(golden_text)
    build(_replace(config, resume=True))  # the lock is free again


# What is refused --------------------------------------------------------------------------------


def refused(
    kind: type[ManyViewsError], config: BuildConfig, *expected: str, watched: Path | None = None
) -> None:
    """Asserts that ``build`` raises a short error with every text, and changes nothing on disk."""
    folder = watched or config.store.parent
    before = tree_digest(folder, mtimes=True)
    with pytest.raises(kind) as caught:
        build(config)
    message = str(caught.value)
    for text in expected:
        assert text in message
    assert len(message.splitlines()) <= 4
    assert caught.value.exit_code == 2
    assert tree_digest(folder, mtimes=True) == before


def test_folders_without_samples(configure: Configure, tmp_path: Path, golden_text: Path) -> None:
    store, empty = tmp_path / "s", tmp_path / "empty"
    empty.mkdir()
    refused(InputError, configure(store, data_dir=empty), "No pair", str(empty), "0 images")
    refused(InputError, configure(store, data_dir=tmp_path / "no"), "does not exist")
    refused(InputError, configure(store, data_dir=golden_text / "zarr.json"), "not a folder")
    (empty / "a.jpg").write_bytes(b"")
    refused(InputError, configure(store, data_dir=empty), "1 images and 0 texts")
    assert not store.exists()


def test_models_that_do_not_fit(
    configure: Configure, tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    store = tmp_path / "s"
    clip, sentence = checkpoints["clip_image"], checkpoints["clip_text"]
    (tmp_path / "hollow").mkdir()
    for feature, model, expected in (
        ("clip_text", str(tmp_path / "no"), "is not a folder"),
        ("clip_text", str(tmp_path / "hollow"), "hollow"),
        ("clip_text", clip, "clip"),
        ("clip_image", sentence, "expected CLIP"),
        ("blip2_image", clip, "expected BLIP-2"),
        ("blip2_text", clip, "expected BLIP-2"),
    ):
        config = configure(store, features=(feature,), models={feature: model})
        refused(ConfigError, config, expected, f"--model {feature}=")
    assert not store.exists()


def test_what_is_at_the_store_is_respected(
    configure: Configure, golden_text: Path, tmp_path: Path
) -> None:
    refused(InputError, configure(golden_text), "already holds", "--resume", "--overwrite")
    refused(ConfigError, configure(golden_text, append=True), "--append", "give --resume")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for intent in ({}, {"resume": True}, {"overwrite": True}):
        refused(InputError, configure(foreign, **intent), "not a feature store", "thesis.tex")
        file = configure(foreign / "thesis.tex", **intent)
        refused(InputError, file, "not a folder", watched=foreign)
    data = configure(foreign).data_dir
    refused(InputError, configure(data, overwrite=True), "not a feature store")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    refused(InputError, configure(link), "not a folder", watched=foreign)


@pytest.mark.parametrize(
    ("changes", "field", "stored", "new"),
    [
        ({"seed": 124}, "seed", "123", "124"),
        ({"views": 4}, "views", "8", "4"),
        ({"chunk": 8}, "chunk", "4", "8"),
        ({"batch_sizes": {"blip2_text": 5}}, "blip2_text.batch_size", "16", "5"),
    ],
)
def test_another_configuration_is_refused(
    golden_text: Path,
    configure: Configure,
    changes: dict[str, Any],
    field: str,
    stored: str,
    new: str,
) -> None:
    config = configure(golden_text, resume=True, **changes)
    refused(StoreMismatchError, config, field, f"stored: {stored}", f"now:    {new}")


def test_other_weights_are_refused(
    golden_text: Path, configure: Configure, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "same-name"
    shutil.copytree(checkpoints["blip2_text"], folder)
    build_with = {"models": {"blip2_text": str(folder)}, "resume": True}
    assert build(configure(golden_text, **build_with)).built == 0  # the name does not matter
    (weights,) = folder.glob("model.safetensors")
    tensors = load_file(weights)
    first = min(tensors)
    tensors[first].view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})
    refused(StoreMismatchError, configure(golden_text, **build_with), "blip2_text.weights_sha256")


def test_other_content_under_the_same_name_in_the_hubs_cache_is_refused(
    configure: Configure,
    checkpoints: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's cache names a file by the SHA-256 of its content when it was fetched."""
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home, commit = tmp_path / "hub/models--some--blip2", "0" * 40
    snapshot = home / "snapshots" / commit
    shutil.copytree(checkpoints["blip2_text"], snapshot)
    weights = snapshot / "model.safetensors"
    blob = home / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(f"../../blobs/{blob.name}")
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)
    config = configure(tmp_path / "s", models={"blip2_text": "some/blip2"})
    build(config)
    resume = _replace(config, resume=True)
    assert build(resume).built == 0
    tensors = load_file(blob)
    tensors["language_model.shared.weight"].view(-1)[0] += 1
    save_file(tensors, tmp_path / "other", {"format": "pt"})
    (tmp_path / "other").replace(blob)
    refused(StoreMismatchError, resume, "blip2_text.weights_sha256")


def test_other_samples_are_refused_and_named(
    configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path / "s", data_dir=some_data)
    build(config)
    resume = _replace(config, resume=True)
    first = min(p.stem for p in some_data.iterdir())
    for suffix in ("jpg", "json"):
        shutil.copy(next(some_data.glob("*." + suffix)), some_data / f"0added.{suffix}")
    refused(StoreMismatchError, resume, "sample list", "+'0added'", "8 samples", "9 samples")
    (some_data / f"{first}.json").unlink()
    refused(StoreMismatchError, resume, "+'0added'", f"-'{first}'")
    (some_data / "0added.json").unlink()
    refused(StoreMismatchError, resume, "7 samples", f"-'{first}'")


def test_a_file_under_another_suffix_is_named(
    configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path / "s", data_dir=some_data)
    build(config)
    poster = min(some_data.glob("*.jpg"))
    poster.rename(poster.with_suffix(".jpeg"))
    names = f"'{poster.stem}.jpeg' was '{poster.name}'"
    refused(StoreMismatchError, _replace(config, resume=True), names, "Give them the names")


def test_more_slots_than_memory(configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path / "s", slots=10**9)
    refused(ConfigError, config, "1,000,000,000 slots", "bytes of shared memory", "--slots")
    assert not config.store.exists()
    slots = {"slots": 10**6, "features": ("clip_image",), "chunk": 16}
    refused(ConfigError, configure(tmp_path / "s", **slots), "are free")


def test_added_views_that_do_not_fill_the_chunks_of_the_store(
    golden_text: Path, configure: Configure
) -> None:
    """The chunk size is that of the store, because --chunk was not given."""
    config = configure(golden_text, resume=True, views=9, chunk=0)
    refused(InputError, config, "chunks of 4 samples, which do not fill", "with 9 views")


def test_chunks_that_do_not_fill_pages(configure: Configure, tmp_path: Path) -> None:
    refused(ConfigError, configure(tmp_path / "s", chunk=3), "--chunk 3 does not", "multiple of 2.")


# Bad samples ------------------------------------------------------------------------------------


def test_bad_sample_fail_lists_them(configure: Configure, some_data: Path, tmp_path: Path) -> None:
    stems = sorted(p.stem for p in some_data.glob("*.json"))
    (some_data / f"{stems[1]}.json").write_text("{")
    (some_data / f"{stems[2]}.json").write_text("[]")
    config = configure(tmp_path / "s", data_dir=some_data, bad_sample="fail")
    with pytest.raises(BadInputsError) as caught:
        build(config)
    for text in (f"'{stems[1]}' text not-json", f"'{stems[2]}' text not-an-object", "2 inputs"):
        assert text in str(caught.value)
    assert caught.value.exit_code == 1
    report = build(_replace(config, bad_sample="placeholder", resume=True))
    assert [(b.index, b.reason) for b in report.bad] == [(1, "not-json"), (2, "not-an-object")]
    # What is in the store already counts as well.
    with pytest.raises(BadInputsError, match=r"has placeholders for 2 inputs.*not-json"):
        build(_replace(config, resume=True))


def stop_at_a_chunk(event: str, _facts: Mapping[str, Any]) -> None:
    if event == "chunk":
        raise KeyboardInterrupt


def test_any_number_of_threads_gives_the_same_store(
    configure: Configure, demo_data: Path, tmp_path: Path
) -> None:
    """Features do not depend on torch's settings elsewhere in the process, nor on a resume."""
    before = torch.get_num_threads()
    changes: dict[str, Any] = {"features": ("clip_image", "blip2_text"), "chunk": 4}
    changes["data_dir"] = copy_pairs(
        demo_data / "dataset", tmp_path / "data", slice(12)
    )  # three chunks
    try:
        torch.set_num_threads(3)
        golden = build(configure(tmp_path / "golden", threads=1, **changes)).store
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyboardInterrupt):
            build(configure(tmp_path / "s", threads=2, **changes), [stop_at_a_chunk])
        assert 1 <= lines(tmp_path / "s") < 3
        build(configure(tmp_path / "s", threads=3, resume=True, **changes))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert tree_digest(tmp_path / "s") == tree_digest(golden)
    assert "cpu_threads" not in FeatureStore(golden).fingerprint


def test_a_store_of_a_gpu_keeps_its_batch_plan_on_a_cpu_if_allowed(
    golden_text: Path, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden_text, tmp_path / "s")
    ledger = tmp_path / "s/records/ledger.jsonl"
    *committed, _ = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(committed))
    recorded = dict(FeatureStore(golden_text).fingerprint)
    recorded |= {"device_kind": "cuda: NVIDIA L4", "batch_plan": "tokens-2-by-8"}
    honest = FeatureStore.__init__

    def begun_on_a_gpu(self: FeatureStore, path: Path) -> None:
        honest(self, path)
        self.fingerprint = recorded

    monkeypatch.setattr(FeatureStore, "__init__", begun_on_a_gpu)
    lengths: list[int] = []
    plan = TextBatcher.plan

    def spy(self: TextBatcher, tokens: Any) -> Any:
        batches = plan(self, tokens)
        lengths.extend(batch.length for batch in batches)
        return batches

    monkeypatch.setattr(TextBatcher, "plan", spy)
    config = configure(tmp_path / "s", resume=True)
    refused(
        StoreMismatchError, config, "another device_kind", "NVIDIA L4", "--allow-version-change"
    )
    assert build(_replace(config, allow_version_change=True)).built == 4
    assert lengths
    assert all(length % 8 == 0 for length in lengths)
    last = FeatureStore(tmp_path / "s").ledger[5]
    assert set(last.changed) == {"device_kind"}


def test_what_is_added_on_another_device_does_not_speak_for_what_was_there(
    configure: Configure, some_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path / "s", data_dir=some_data)
    build(config)
    before = dict(FeatureStore(config.store).fingerprint)
    last = max(p.stem for p in some_data.iterdir())
    for suffix in ("jpg", "json"):
        shutil.copy(next(some_data.glob("*." + suffix)), some_data / f"{last}z.{suffix}")
    monkeypatch.setattr(registry, "device_kind", lambda _: "cpu: another")
    more = _replace(config, resume=True, append=True)
    refused(StoreMismatchError, more, "another device_kind")
    assert build(_replace(more, allow_version_change=True)).built == 1
    store = FeatureStore(config.store)
    assert store.fingerprint["device_kind"] == before["device_kind"]
    changed = [dict(entry.changed) for entry in store.ledger.entries]
    assert changed == [{}, {}, {"device_kind": f"{before['device_kind']} -> cpu: another"}]


def test_all_samples_bad(configure: Configure, some_data: Path, tmp_path: Path) -> None:
    for path in some_data.iterdir():
        path.write_bytes(b"not at all")
    config = configure(tmp_path / "s", data_dir=some_data, features=("clip_image",), chunk=16)
    report = build(config)
    assert [b.reason for b in report.bad] == ["not-an-image", "not-json"] * 8
    rows = FeatureStore(config.store).read_chunk("clip_image", 0)
    # Eight black posters of eight samples: black stays black in every view.
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:1, :1], rows.shape))


def test_one_sample(configure: Configure, some_data: Path, tmp_path: Path) -> None:
    keep = min(p.stem for p in some_data.iterdir())
    for path in some_data.iterdir():
        if path.stem != keep:
            path.unlink()
    report = build(configure(tmp_path / "s", data_dir=some_data, producers=3))
    assert (report.samples, report.built, report.bad) == (1, 1, [])
    assert FeatureStore(tmp_path / "s").read_chunk("blip2_text", 0).shape == (1, 8, 64)
    done = materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    assert np.isfinite(np.load(tmp_path / "out" / f"{PREFIX}_blip2_text.npy")).all()
    assert done.files


# Hostile names ----------------------------------------------------------------------------------

HOSTILE = [
    "..x",
    "x..",
    "...",
    "a..b",
    "a\nb",
    "a\r\nb",
    'quo"te,comma',
    "a;rm -rf ~",
    "$(touch pwned)",
    "%2e%2e%2fx",
    "-rf",
    "con",
    "zarr",
    "c",
    "c.0.0.0",
    "records",
    " blank ",
    "*",
    unicodedata.normalize("NFC", "café"),
    unicodedata.normalize("NFD", "café"),
    "\u202eright to left",
    "x" * 250,
    os.fsdecode(b"not utf-8 \xff\xfe"),
]


@pytest.fixture
def hostile(demo_data: Path, tmp_path: Path) -> Path:
    """A folder of legal file names that break careless programs, two levels deep."""
    folder = tmp_path / "work" / "data"
    folder.mkdir(parents=True)
    text = json.dumps({"plot": ["w " * 9]})
    for stem in HOSTILE:
        (folder / f"{stem}.jpg").write_bytes(b"not read")
        (folder / f"{stem}.json").write_text(text)
    return folder


def test_hostile_names_are_values_and_never_paths(
    configure: Configure, hostile: Path, tmp_path: Path
) -> None:
    # A name that begins with a dot is a hidden file, and left out as such.
    expected = sorted(s for s in HOSTILE if not s.startswith("."))
    store = hostile.parent / "store"
    outside = {k: v for k, v in tree_digest(tmp_path).items() if not k.startswith("work/store")}
    report = build(configure(store, data_dir=hostile))
    assert report.samples == len(expected)
    assert report.bad == []
    after = tree_digest(tmp_path)
    assert {k: v for k, v in after.items() if not k.startswith("work/store")} == outside
    assert FeatureStore(store).stems == expected
    assert build(configure(store, data_dir=hostile, resume=True)).built == 0

    materialize(FeatureStore(store), hostile.parent / "out")
    index = hostile.parent / "out" / f"{PREFIX}_aug_index.csv"
    with index.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stem"] for row in rows] == [s for s in expected for _ in range(8)]
    assert [row["image_name"] for row in rows] == [f"{s}.jpg" for s in expected for _ in range(8)]
    assert [int(row["aug_idx"]) for row in rows] == list(range(8 * len(expected)))

    with pytest.raises(InputError, match="holds a line break"):
        write_labels(expected, [{"genres": ["War"]}] * len(expected), hostile.parent / "labels")
    assert not (hostile.parent / "labels").exists()


# Inputs that changed ----------------------------------------------------------------------------


def half_built(configure: Configure, data: Path, store: Path) -> BuildConfig:
    """A store of ``data`` without its second and last chunk."""
    from featurestore.storage import writer as stores
    from featurestore.verify.repair import repair
    from featurestore.verify.store import verify

    config = configure(store, data_dir=data)
    build(config)
    (store / "blip2_text" / "c.1.0.0").unlink()
    lock = stores.take_lock(store)
    assert repair(store, verify(store)) == [1]
    lock.release()
    return config


def test_a_committed_input_that_changed_is_refused_by_name(
    configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    config = half_built(configure, some_data, store)
    names = sorted(p.name for p in some_data.glob("*.json"))
    first, last = some_data / names[0], some_data / names[-1]
    undisturbed = first.read_bytes()
    before = tree_digest(store)
    first.write_text('{"plot": "another film"}')
    with pytest.raises(StoreMismatchError, match=f"other content in 1 file: '{names[0]}'"):
        build(_replace(config, resume=True))
    assert tree_digest(store) == before
    # Same content at another time, and a change to what was not read yet, are fine.
    first.write_bytes(undisturbed)
    last.write_text('{"plot": "not read yet"}')
    assert build(_replace(config, resume=True)).built == 4


def test_verify_inputs_reads_what_looks_unchanged(
    configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    config = half_built(configure, some_data, store)
    synopsis = min(some_data.glob("*.json"))
    status, content = synopsis.stat(), bytearray(synopsis.read_bytes())
    content[-2] ^= 1
    synopsis.write_bytes(content)
    os.utime(synopsis, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreMismatchError, match=synopsis.name):
        build(_replace(config, resume=True, verify_inputs=True))
    assert build(_replace(config, resume=True)).built == 4


def test_another_suffix_is_another_sample_list(
    configure: Configure, some_data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    config = half_built(configure, some_data, store)
    poster = min(some_data.glob("*.jpg"))
    poster.rename(poster.with_suffix(".jpeg"))
    with pytest.raises(StoreMismatchError, match="sample list"):
        build(_replace(config, resume=True))


@pytest.mark.parametrize(("features", "numbers"), [(FEATURES, ""), (("blip2_text",), "64")])
def test_a_chunk_size_is_refused_before_the_models_are_loaded(
    configure: Configure,
    some_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    features: tuple[str, ...],
    numbers: str,
) -> None:
    """The checkpoints' own configurations state the dimensions."""

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("consumers.backbones.registry.load", load)
    config = configure(tmp_path / "s", data_dir=some_data, features=features, views=10, chunk=3)
    with pytest.raises(ConfigError) as caught:
        build(config)
    message = str(caught.value)
    assert message.startswith("--chunk 3 does not fill whole memory pages with 10 views (features ")
    assert f"{numbers} numbers): use a multiple of " in message
    assert len(message.splitlines()) == 1
    multiple = int(message.rpartition(" ")[2].rstrip("."))
    monkeypatch.undo()
    assert build(_replace(config, chunk=multiple)).built == 8


@pytest.mark.parametrize("feature", FEATURES)
def test_a_dimension_known_before_loading_is_that_of_the_model(
    checkpoints: dict[str, str], feature: str
) -> None:
    model = checkpoints[feature]
    known = registry.known_dim(feature, model)
    assert known == registry.load(feature, model, "cpu", "float32").dim
    assert registry.known_dim(feature, "no/such-model-anywhere") is None
