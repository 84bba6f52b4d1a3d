"""The ``check`` command: its findings, its exit codes, and that it changes nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumers.backbones import registry
from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import ConfigError
from featurestore.storage.space import missing_bytes, store_bytes
from featurestore.storage.store import FeatureStore
from manyviews import main
from manyviews.operations.check import machine
from manyviews.operations.check.findings import Group
from manyviews.operations.check.machine import Free, Need
from tests import warm
from tests.conftest import ROOT, tree_digest
from tests.producers.test_pool import alive, eventually

FEATURES = ("clip_image", "clip_text")
Answer = tuple[int, str, str]
Call = Callable[..., Answer]


@pytest.fixture(scope="module")
def workplace(
    demo_data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Nine samples of the demo, a split, and a store with two features."""
    folder = tmp_path_factory.mktemp("checked")
    data = folder / "data"
    data.mkdir()
    stems = sorted(p.stem for p in (demo_data / "dataset").glob("*.json"))[:9]
    for stem in stems:
        for file in (demo_data / "dataset").glob(f"{stem}.*"):
            shutil.copy(file, data)
    split = {"train": stems[:5], "dev": stems[5:6], "test": stems[6:8]}
    (folder / "split.json").write_text(json.dumps(split))
    models = {name: checkpoints[name] for name in FEATURES}
    build(
        BuildConfig(
            data_dir=data,
            store=folder / "store",
            models=models,
            features=FEATURES,
            views=4,
            chunk=8,
            producers=1,
            device="cpu",
        )
    )
    return folder


@pytest.fixture
def check(workplace: Path, checkpoints: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Call:
    """Checks the nine samples in this process."""

    def call(*arguments: object, **models: str) -> Answer:
        typed: list[object] = ["check", "--data-dir", workplace / "data", "--views", 4]
        typed += ["--producers", 1, "--device", "cpu", "--features", ",".join(FEATURES)]
        for name in FEATURES:
            typed += ["--model", f"{name}={models.get(name, checkpoints[name])}"]
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in (*typed, *arguments)])
        output, errors = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, output, errors

    return call


def problems(output: str, level: str) -> list[str]:
    return [p["what"] for p in json.loads(output)["problems"] if p["level"] == level]


def test_an_error_of_a_library_is_listed_and_the_other_groups_are_checked(
    check: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of a library ends neither the check nor the report."""

    def raising(*_: object, **__: object) -> None:
        raise ImportError("XTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.__init__", raising)
    code, output, errors = check("--json")
    assert (code, errors.count("defect")) == (1, 0)
    (what,) = problems(output, "error")
    assert "cannot be loaded by sentence-transformers, which needs sentencepiece" in what
    found = json.loads(output)
    (problem,) = [p for p in found["problems"] if p["level"] == "error"]
    assert "pip install sentencepiece" in problem["advice"]
    assert {"data", "models", "machine", "forecast", "posters", "synopses"} <= found.keys()


def test_each_model_that_cannot_be_loaded_is_listed(
    check: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check does not stop at the first such model."""

    def refuse(feature: str, *_: object) -> object:
        raise ConfigError(f"{feature} cannot be loaded.\nGive another with --model.")

    monkeypatch.setattr("consumers.backbones.registry.load", refuse)
    code, output, errors = check("--json")
    assert (code, errors.count("defect")) == (1, 0)
    errors_found = problems(output, "error")
    assert [what.partition(":")[0] for what in errors_found] == list(FEATURES)
    assert {"data", "models", "machine", "forecast", "posters", "synopses"} <= json.loads(
        output
    ).keys()


# Everything -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(
    workplace: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The JSON report on a new store; the check must not change any file."""
    import io
    from contextlib import redirect_stdout

    before = tree_digest(workplace, mtimes=True)
    typed = [
        "check",
        "--data-dir",
        workplace / "data",
        "--store",
        workplace / "new",
        "--json",
        "-q",
    ]
    typed += ["--split-json", workplace / "split.json", "--views", 4, "--producers", 1]
    typed += ["--device", "cpu", "--features", ",".join(FEATURES), "--full"]
    for name in FEATURES:
        typed += ["--model", f"{name}={checkpoints[name]}"]
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit) as ended:
        main.main([str(a) for a in typed])
    assert tree_digest(workplace, mtimes=True) == before
    return {"code": ended.value.code, **json.loads(output.getvalue())}


def test_a_sound_folder_is_ready(everything: dict[str, Any]) -> None:
    assert everything["code"] == 0
    assert everything["ok"]
    assert everything["data"]["samples"] == 9
    assert everything["posters"]["read"] == everything["posters"]["of"] == 9
    assert [bad[1] for bad in everything["posters"]["bad"]] == ["truncated"]
    assert everything["split"]["parts"] == {"train": 5, "val": 1, "test": 2}
    assert len(everything["split"]["in_none"]) == 1
    assert everything["store"]["state"] == "absent"


def test_tokens_are_those_of_the_checkpoints_own_tokenizer(
    everything: dict[str, Any], workplace: Path, checkpoints: dict[str, str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoints["clip_text"])
    counts = []
    for path in sorted((workplace / "data").glob("*.json")):
        plot = json.loads(path.read_text("utf-8"))["plot"]
        counts.append(len(tokenizer(" ".join(plot), truncation=False)["input_ids"]))
    found = everything["synopses"]["tokens"]["clip_text"]
    assert found["limit"] == 128
    assert found["cut"] == sum(count > 128 for count in counts) > 0
    assert (found["min"], found["max"]) == (min(counts), max(counts))
    assert found["median"] == sorted(counts)[(len(counts) - 1) // 2]


def test_models_are_counted_without_loading_them(
    everything: dict[str, Any], checkpoints: dict[str, str]
) -> None:
    for name in FEATURES:
        network = registry.load(name, checkpoints[name], "cpu", "auto")._network  # type: ignore[union-attr]
        facts = everything["models"][name]
        assert facts["parameters"] == sum(p.numel() for p in network.parameters())
        assert facts["weight_bytes"] == 4 * facts["parameters"]
        assert (facts["where"], facts["dtype"]) == ("folder", "float32")
        on_disk = sum(p.stat().st_size for p in Path(checkpoints[name]).rglob("*") if p.is_file())
        assert 0 < facts["bytes"] <= on_disk


def test_disk_space_is_the_size_of_a_store(
    everything: dict[str, Any], workplace: Path, tmp_path: Path
) -> None:
    store = FeatureStore(workplace / "store")
    files = [p for p in (workplace / "store").rglob("*") if p.is_file()]
    taken = sum(p.stat().st_size for p in files if p.suffix != ".log")
    assert store_bytes(store.spec, store.samples) == pytest.approx(taken, rel=0.1)
    arrays = sum(
        p.stat().st_size for name in FEATURES for p in (workplace / "store" / name).glob("c.*")
    )
    nothing_done = missing_bytes(store.spec, store.samples, tmp_path / "none", ())
    assert nothing_done == store_bytes(store.spec, store.samples) > arrays
    # Nine samples in chunks of 64 make one large chunk file.
    assert everything["machine"]["disk"]["needed"] > 64 * 4 * (32 + 32) * 4
    assert everything["machine"]["disk"]["free"] > 0
    assert everything["machine"]["device"]["name"] == "cpu"
    assert everything["machine"]["device"]["kind"].startswith("cpu: ")


def test_the_forecast_reports_its_trial(everything: dict[str, Any]) -> None:
    facts = everything["forecast"]
    assert facts["samples"] == 9
    assert facts["trial_samples"] in (3, 6)  # three on a very busy machine
    assert facts["views_per_s"] == pytest.approx(4 * facts["samples_per_s"], rel=0.01)
    assert 0 < facts["seconds"] < 600
    assert facts["hours"] == pytest.approx(facts["seconds"] / 3600, abs=1e-3)
    assert facts["bottleneck"] in ("producers", "backbones")


def test_memory_and_limits(everything: dict[str, Any]) -> None:
    memory, limits = everything["machine"]["memory"], everything["machine"]["limits"]
    # Three augmented views and a clean one of 224 x 224, and the ids of four texts; four slots.
    assert memory["queue_needed"] == pytest.approx(4 * (4 * 224 * 224 * 3 + 4 * 129 * 4), rel=0.01)
    assert memory["host_needed"] > memory["queue_needed"] + memory["weights"]
    assert memory["host_free"] > memory["host_needed"]
    assert limits["open_files_needed"] == 3 + 64


# The printed report -----------------------------------------------------------------------------


def test_the_printed_report(check: Call, workplace: Path) -> None:
    code, output, errors = check("--no-calibration", "--split-json", workplace / "split.json")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    titles = [line for line in output.splitlines() if line and not line.startswith(" ")]
    assert titles[:-1] == [
        *("choices", "data", "split", "samples", "posters", "synopses", "genres"),
        *("models", "machine", "forecast"),
    ]
    assert titles[-1].startswith("ready to build, ")
    for line in output.splitlines():
        if line.startswith("  ") and line.strip() and not line.startswith("   "):
            assert line.split()[0] in ("ok", "warning", "error")
    assert "Leave --no-calibration out" in output
    assert "reading 9 of 9 samples" in errors
    assert check("--no-calibration", "-q") == (0, "", "")


def test_verbose_names_everything(check: Call, workplace: Path, tmp_path: Path) -> None:
    stems = sorted(p.stem for p in (workplace / "data").glob("*.json"))
    (tmp_path / "split.json").write_text(json.dumps({"train": stems[:1], "dev": [], "test": []}))
    typed = ("--no-calibration", "--split-json", tmp_path / "split.json")
    assert repr(stems[8]) not in check(*typed)[1]
    output = check(*typed, "-v")[1]
    assert all(repr(stem) in output for stem in stems[1:])
    assert max(map(len, output.splitlines())) <= 80


# Killed checks ----------------------------------------------------------------------------------

WAIT = """
import os, time
from producers import decode


def wait(data):
    with open(os.path.join(os.environ["MARKS"], str(os.getpid())), "x"):
        time.sleep(1000)


setattr(decode, os.environ["WHERE"], wait)
"""


@pytest.mark.parametrize("where", ["describe", "image"], ids=["reading", "trying"])
def test_a_killed_check_leaves_neither_process_nor_file(
    workplace: Path, checkpoints: dict[str, str], tmp_path: Path, where: str
) -> None:
    """kill -9 while inputs are read (``describe``), or while producers make views (``image``)."""
    site, marks, place = (tmp_path / name for name in ("site", "marks", "place"))
    for folder in (site, marks, place):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(WAIT)
    typed: list[object] = [sys.executable, ROOT / "cli.py", "check", "--device", "cpu"]
    typed += ["--data-dir", workplace / "data", "--store", place / "new", "--views", 4]
    typed += ["--producers", 2, "--features", "clip_image"]
    typed += ["--model", f"clip_image={checkpoints['clip_image']}"]
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "MARKS": str(marks), "WHERE": where}
    with warm.Popen(
        list(map(str, typed)), env=os.environ | environment, stderr=subprocess.DEVNULL
    ) as check:
        eventually(lambda: len(list(marks.iterdir())) == 2 or check.poll() is not None)
        family = [psutil.Process(check.pid), *psutil.Process(check.pid).children(recursive=True)]
        assert {path.name for path in marks.iterdir()} <= {str(p.pid) for p in family}
        assert list(place.iterdir()) == []
        check.kill()
    eventually(lambda: not any(map(alive, family)), seconds=5)
    assert list(place.iterdir()) == []


def test_a_killed_check_leaves_no_file_in_the_middle_of_a_write(
    workplace: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    site, place, mark = tmp_path / "site", tmp_path / "place", tmp_path / "mark"
    for folder in (site, place):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(KILL)
    typed: list[object] = [sys.executable, ROOT / "cli.py", "check", "--device", "cpu"]
    typed += ["--data-dir", workplace / "data", "--store", place / "new", "--views", 4]
    typed += ["--producers", 1, "--features", "clip_image"]
    typed += ["--model", f"clip_image={checkpoints['clip_image']}"]
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "MARK": str(mark)}
    done = warm.run(list(map(str, typed)), env=os.environ | environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert mark.read_text() == str(place)
    assert list(place.iterdir()) == []


KILL = """
import os, signal
from featurestore.system import durable


def kill(operation, path, size):
    if operation == "fsync":
        with open(os.environ["MARK"], "x") as file:
            file.write(str(path))
        os.kill(os.getpid(), signal.SIGKILL)
    return size


durable.hook = kill
"""


# Errors -----------------------------------------------------------------------------------------


def test_an_overlapping_split(check: Call, workplace: Path, tmp_path: Path) -> None:
    split = json.loads((workplace / "split.json").read_text())
    split["test"].append(split["train"][0])
    (tmp_path / "split.json").write_text(json.dumps(split))
    code, output, _ = check("--no-calibration", "--split-json", tmp_path / "split.json", "--json")
    assert code == 1
    assert problems(output, "error") == [f"both in train, test: 1: {split['train'][0]!r}"]


def test_missing_and_damaged_models(
    check: Call, checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoints["clip_image"], damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:-100])
    code, output, _ = check("--json", clip_image=str(damaged), clip_text=str(tmp_path / "nowhere"))
    assert code == 1
    image, text = problems(output, "error")
    assert "damaged" in image
    assert "nowhere is not a folder" in text
    assert json.loads(output)["forecast"] == {"seconds": None}


def test_loading_detects_a_model_of_another_kind(check: Call, checkpoints: dict[str, str]) -> None:
    code, output, _ = check("--json", clip_image=checkpoints["blip2_image"])
    assert code == 1
    (problem,) = problems(output, "error")
    assert "is a blip-2 checkpoint, expected CLIP" in problem


def test_numbers_that_depend_on_missing_models_are_not_known(
    check: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = {name: registry.REGISTRY[name].default_model for name in FEATURES}
    code, output, _ = check("--store", tmp_path / "new", **models)
    assert code == 1
    text = " ".join(output.split())
    unknown = "not known: fetch or name the models first: clip_image, clip_text."
    for label in ("queue", "memory", "disk"):
        assert f"warning {label} {unknown}" in text
    facts = json.loads(check("--store", tmp_path / "new", "--json", **models)[1])
    assert {facts["models"][name]["where"] for name in FEATURES} == {"missing"}
    memory = facts["machine"]["memory"]
    assert {name for name, value in memory.items() if value is not None} == {"host_free"}
    assert facts["machine"]["disk"]["needed"] is None


def test_all_models_that_cannot_be_loaded_are_named_beside_a_missing_one(
    check: Call, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    code, output, _ = check(
        "--json", clip_image=str(tmp_path / "nowhere"), clip_text=checkpoints["clip_image"]
    )
    assert code == 1
    assert [what.partition(":")[0] for what in problems(output, "error")] == list(FEATURES)
    assert "nowhere is not a folder" in problems(output, "error")[0]


def test_a_store_with_other_views_is_an_error(check: Call, workplace: Path) -> None:
    before = tree_digest(workplace / "store", mtimes=True)
    code, output, _ = check("--store", workplace / "store", "--views", 3, "--json")
    assert code == 1
    (problem,) = problems(output, "error")
    assert "was built with another views" in problem
    assert json.loads(output)["forecast"]["seconds"] > 0
    assert tree_digest(workplace / "store", mtimes=True) == before


@pytest.mark.parametrize("absent", [False, True])
def test_a_store_mismatch_is_reported_without_loading_the_models(
    check: Call, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: bool
) -> None:
    """A build compares these settings with the store before it loads any model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "data"
    shutil.copytree(workplace / "data", data)
    first = min(p.stem for p in data.glob("*.json"))
    (data / f"{first}.json").write_text('{"plot": "another"}')
    how: dict[str, str] = {"clip_image": "nobody/nothing"} if absent else {}
    for folder, refusal in ((data, "other content"), (workplace / "store", "")):
        more: list[object] = ["--data-dir", folder] if refusal else ["--seed", 5]
        more += [] if absent else ["--no-calibration"]
        code, output, _ = check("--store", workplace / "store", *more, "--json", **how)
        assert code == 1
        found = [p for p in problems(output, "error") if p.startswith("resume")]
        assert len(found) == 1, output
        assert (refusal or "another seed") in found[0]


def test_an_unwritable_parent_folder_is_an_error(
    check: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write anywhere, so the permission check is replaced.
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    code, output, _ = check("--store", tmp_path / "new", "--no-calibration", "--json")
    assert code == 1
    [found] = problems(output, "error")
    assert f"Could not use {tmp_path}: Permission denied" in found
    assert not list(tmp_path.iterdir())


def test_check_takes_the_options_of_build(check: Call, workplace: Path) -> None:
    options = {name: {o for p in c.params for o in p.opts} for name, c in main.cli.commands.items()}
    assert options["build"] <= options["check"]
    for more, refused in (
        (["--resume"], None),
        (["--resume", "--seed", 5, "--no-calibration"], "was built with another seed"),
        (
            ["--resume", "--batch-size", "clip_text=4", "--no-calibration"],
            "another clip_text.batch_size",
        ),
        (["--bad-sample", "fail", "--no-calibration"], "1 input that cannot be used"),
    ):
        code, output, _ = check("--store", workplace / "store", *more, "--json")
        found = problems(output, "error")
        assert code == (refused is not None), (more, found)
        assert refused is None or any(refused in what for what in found), (more, found)


def test_a_store_that_is_complete(check: Call, workplace: Path) -> None:
    code, output, _ = check("--store", workplace / "store", "--json")
    assert code == 0
    facts = json.loads(output)
    assert facts["store"]["complete"]
    assert facts["forecast"]["samples"] == facts["forecast"]["seconds"] == 0
    disk = facts["machine"]["disk"]
    assert disk["left"] == 0
    assert disk["committed"] == disk["needed"] > 0


def test_a_folder_that_is_not_a_store_is_an_error(check: Call, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    code, output, _ = check("--store", tmp_path, "--no-calibration", "--json")
    assert code == 1
    assert "is not a feature store" in problems(output, "error")[0]
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_too_few_resources_are_errors(
    check: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 400_000)
    monkeypatch.setattr(machine, "free_bytes", lambda _: 10)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 60))
    monkeypatch.setattr(machine, "process_room", lambda: 3)
    code, output, _ = check("--store", tmp_path / "new", "--json")
    assert code == 1
    labels = {p.split(":")[0] for p in problems(output, "error")}
    assert {"memory", "open files", "processes"} <= labels
    assert not list(tmp_path.iterdir())
    advice = [p["advice"] for p in json.loads(output)["problems"] if p["level"] == "error"]
    assert any("ulimit -n 60" in a for a in advice)


@pytest.mark.parametrize(
    ("free", "peak", "level"), [(1000, None, "ok"), (799, None, "error"), (1000, 1001, "error")]
)
def test_a_gpu_with_and_without_room(free: int, peak: int | None, level: str) -> None:
    group = Group("machine")
    need = Need(weights=500, batches=300, host=20, queue=10, producers=0, threads=1)
    machine.memory_into(group, need, Free(memory=30, device=free), peak)
    levels = {line.label: line.level for line in group.lines}
    assert levels == {"GPU memory": level, "queue": "ok", "memory": "ok"}
    facts = group.facts["memory"]
    assert (facts["device_needed"], facts["device_free"], facts["host_needed"]) == (800, free, 30)


def test_a_missing_data_folder_is_a_usage_error(check: Call, tmp_path: Path) -> None:
    code, output, errors = check("--data-dir", tmp_path / "none")
    assert (code, output) == (2, "")
    assert "does not exist" in errors
