"""``build --devices``: real parents, workers and producers, killed, stopped and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumers.build import build
from consumers.config import BuildConfig
from consumers.workers import worker
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock
from featurestore.system import durable
from tests import warm
from tests.conftest import ROOT, tree_digest
from tests.consumers.test_build import (
    GATE,
    TEXTS,
    arguments,
    gone,
    open_gate,
    stop_at_a_chunk,
    wait_for,
)

# Texts that pass the gate: one of two workers then commits a chunk.
OPEN = 12
FORKING = """
import os
if os.environ.pop("IS_PARENT", ""):
    from tests import forked
    {prepare}
    forked.install(prepare)
"""
NOTHING = "prepare = lambda number: None"

Parent = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def environment(site: Path, *, gate: bool = False, prepare: str = NOTHING) -> dict[str, str]:
    """The environment of a parent that forks its workers, whose producers may stop at a gate."""
    text = FORKING.format(prepare=prepare) + (GATE.format(open=OPEN) if gate else "")
    (site / "sitecustomize.py").write_text(text)
    return {**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "IS_PARENT": "yes"}


@pytest.fixture
def parent(site: Path) -> Iterator[Parent]:
    """Starts the command of a configuration, with ``--devices``, in a new process group."""
    started: list[subprocess.Popen[str]] = []

    def run(
        config: BuildConfig, *more: str, devices: str = "cpu,cpu", **options: Any
    ) -> subprocess.Popen[str]:
        typed = arguments(config, *more)
        at = typed.index("--device")
        typed[at : at + 2] = ["--devices", devices, "--resume", "--json"]
        process = warm.Popen(
            typed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment(site, **options),
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def done(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The report of a parent that ends with ``code``."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    report: dict[str, Any] = json.loads(output) if code in (0, 3) else {"errors": errors}
    return report


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a parent."""
    with suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(process.pid).children() if p.status() != "zombie"]
    return []


def committed(store: Path) -> int:
    return len(FeatureStore(store).ledger) if (store / "zarr.json").exists() else 0


def at_the_gate(process: subprocess.Popen[str], store: Path) -> None:
    """Waits until a chunk is committed and both workers build."""
    wait_for(lambda: committed(store) or process.poll() is not None, 300)
    assert process.poll() is None, process.communicate()
    # They handle stop signals when they start their producers.
    wait_for(lambda: sum(map(has_children, children(process))) == 2, 300)


def has_children(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.children())
    return False


# Without faults ---------------------------------------------------------------------------------


def test_a_worker_is_an_interpreter_of_its_own(
    configure: Any, golden_text: Path, tmp_path: Path
) -> None:
    """It is started as outside of tests; the other tests fork theirs, which is faster."""
    store = tmp_path / "s"
    typed = arguments(configure(store))
    at = typed.index("--device")
    typed[at : at + 2] = ["--devices", "cpu", "--resume", "--json", "--verbose"]
    ran = warm.run(typed, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert tree_digest(store) == tree_digest(golden_text)
    report = json.loads(ran.stdout)
    plain = build(configure(golden_text, resume=True))
    assert (report["built"], report["bad"], report["restarted"]) == (TEXTS, [], {})
    assert report["absent"] == dict(plain.absent)
    assert "cpu (worker 0/1): loading the backbones" in ran.stderr
    assert f"{TEXTS}/{TEXTS} samples" in ran.stderr


def test_three_workers_share_the_machine(
    configure: Any, golden_text: Path, tmp_path: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    report = done(parent(configure(store), devices="cpu,cpu,cpu"))
    assert report["built"] == TEXTS
    assert tree_digest(store) == tree_digest(golden_text)
    started = [
        json.loads(line)
        for log in (store / "records" / "runs").glob("*.log")
        for line in log.read_text().splitlines()
        if '"event": "started"' in line
    ]
    # Two producers, and as many compute threads as there are CPUs; at least one each.
    assert {facts["worker"] for facts in started} <= {"0/3", "1/3", "2/3"}
    assert {facts["producers"] for facts in started} == {1}
    assert {facts["slots"] for facts in started} == {4}


def test_a_complete_store_has_nothing_to_do(
    configure: Any, golden_text: Path, tmp_path: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    shutil.copytree(golden_text, store)
    process = parent(configure(store))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "nothing to do" in errors
    assert json.loads(output)["built"] == 0
    assert tree_digest(store) == tree_digest(golden_text)


# Killed ------------------------------------------------------------------------------------------


def test_a_killed_worker_is_started_again(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    process = parent(configure(store, slots=8), gate=True)
    at_the_gate(process, store)
    before = children(process)
    assert len(before) == 2
    before[0].kill()
    wait_for(lambda: len(set(children(process)) - set(before)) == 1, 60)
    open_gate(site)
    report = done(process)
    assert report["restarted"] == {"SIGKILL (probably out of memory)": 1}
    assert report["built"] == TEXTS
    assert tree_digest(store) == tree_digest(golden_text)


def test_workers_that_are_killed_again_and_again_end_the_build(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    process = parent(configure(store, slots=8), gate=True)
    at_the_gate(process, store)
    kept = committed(store)
    killed: set[psutil.Process] = set()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        for child in set(children(process)) - killed:
            child.kill()
            killed.add(child)
        time.sleep(0.02)
    errors = done(process, 1)["errors"]
    assert len(killed) == 2 * 4
    assert "was ended 4 times, at last by SIGKILL" in errors
    assert "--resume" in errors
    assert committed(store) >= kept
    open_gate(site)
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden_text)


def test_no_worker_outlives_a_killed_parent(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    process = parent(configure(store, slots=8), gate=True)
    at_the_gate(process, store)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # two workers and their producers
    process.kill()
    wait_for(lambda: all(gone(each) for each in family), 60)
    open_gate(site)
    assert done(parent(configure(store)))["built"] < TEXTS
    assert tree_digest(store) == tree_digest(golden_text)


def test_a_worker_that_is_stuck_does_not_delay_a_complete_store(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    process = parent(configure(store, slots=8), gate=True)
    at_the_gate(process, store)
    stuck = children(process)[0]
    stuck.suspend()
    open_gate(site)
    assert done(process)["restarted"] == {}
    assert gone(stuck)
    assert tree_digest(store) == tree_digest(golden_text)


# Stopped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM]
)
def test_a_stop_signal_to_all_processes_is_one(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent, number: int
) -> None:
    """A terminal and a scheduler send it to all processes; each worker completes its chunk."""
    store = tmp_path / "s"
    process = parent(configure(store, slots=8), gate=True)
    at_the_gate(process, store)
    before, workers = committed(store), children(process)
    os.killpg(process.pid, number)
    name = signal.Signals(number).name

    def acknowledged() -> bool:
        logs = (store / "records" / "runs").glob("*.log")
        return sum(f'"signal": "{name}"' in log.read_text() for log in logs) == 2

    wait_for(acknowledged, 60)
    assert all(each.is_running() for each in workers)
    open_gate(site)
    errors = done(process, 128 + number)["errors"]
    assert "Stopping after the current chunk" in errors
    assert f"Stopped by {name} after {committed(store)} of 6 chunks" in errors
    assert before <= committed(store) <= before + 4
    assert not list(store.rglob("*.partial"))
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden_text)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_second_stop_signal_ends_all_at_once(
    configure: Any, golden_text: Path, tmp_path: Path, site: Path, parent: Parent, number: int
) -> None:
    """The gate stays closed, so that a chunk that was begun cannot be completed.

    Workers that have begun none when the first signal arrives end with it: then again.
    """
    for attempt in range(4):
        store = tmp_path / f"s{attempt}"
        process = parent(configure(store, slots=8), gate=True)
        at_the_gate(process, store)
        family = psutil.Process(process.pid).children(recursive=True)
        sent = 0
        while process.poll() is None:
            os.killpg(process.pid, number)
            sent += 1
            assert sent <= 20, "it does not stop"
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5 if sent == 1 else 15)
        _, errors = process.communicate()
        assert "Traceback" not in errors
        wait_for(lambda family=family: all(gone(each) for each in family), 60)  # type: ignore[misc]
        if sent > 1:
            break
        assert process.returncode == 128 + number, errors
    assert sent > 1, "every first signal found no chunk that was begun"
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    open_gate(site)
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden_text)


# Refused -----------------------------------------------------------------------------------------


def test_a_build_fails_if_every_worker_is_refused(
    configure: Any, golden_text: Path, tmp_path: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    shutil.copytree(golden_text, store)
    errors = done(parent(configure(store), "--seed", "7"), 2)["errors"]
    assert "was built with another seed" in errors
    assert "cpu (worker 0/2) ended" in errors
    assert "cpu (worker 1/2) ended" in errors
    assert tree_digest(store) == tree_digest(golden_text)


OTHER_VERSION = """
    def prepare(number):
        if number == 1:
            from consumers import decisions
            honest = decisions.version
            decisions.version = lambda name: "0.1" if name == "pillow" else honest(name)
"""


def test_a_refused_worker_leaves_the_others_running(
    configure: Any, golden_text: Path, tmp_path: Path, parent: Parent
) -> None:
    store = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        build(configure(store), [stop_at_a_chunk])
    before = committed(store)
    process = parent(configure(store), prepare=OTHER_VERSION.strip())
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "cpu (worker 1/2) ended" in errors
    assert "another version.pillow" in errors
    assert json.loads(output)["built"] == TEXTS - 4 * before
    assert tree_digest(store) == tree_digest(golden_text)


def test_the_last_chunks_of_a_refused_worker_are_built_at_once(
    configure: Any, golden_text: Path, tmp_path: Path, parent: Parent
) -> None:
    """By a worker that has built none itself, and does not know how long one takes."""
    store = tmp_path / "s"
    shutil.copytree(golden_text, store)
    ledger = store / "records/ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-2]))
    process = parent(configure(store), prepare=OTHER_VERSION.strip())
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "cpu (worker 1/2) ended" in errors
    assert json.loads(output)["built"] == 8
    assert tree_digest(store) == tree_digest(golden_text)
    moments = {}
    for log in (store / "records/runs").glob("*.log"):
        for event in map(json.loads, log.read_text().splitlines()):
            if event.get("worker", "0/2") == "0/2" and event["event"] in ("started", "finished"):
                moments[event["event"]] = datetime.fromisoformat(event["time"])
    waited = moments["finished"] - moments["started"]
    assert waited < timedelta(seconds=45), waited  # it would wait 60 s for a worker that runs


RAISING = """
from pathlib import Path

from consumers.backbones.sentence import load_declared
from tokenizers import Tokenizer


class Raising:
    def __init__(self, backbone):
        self._backbone = backbone
        self._word = Tokenizer.from_str(backbone.text.tokenizer_json).token_to_id("ship")

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def embed(self, ids, mask):
        if (ids == self._word).any() and not (Path(__file__).parent / "go").exists():
            raise RuntimeError("the device failed")
        return self._backbone.embed(ids, mask)


def load(request):
    return Raising(load_declared(request))
"""


def test_a_backbone_that_fails_on_one_chunk_does_not_keep_the_others_from_being_built(
    checkpoints: dict[str, str], some_data: Path, tmp_path: Path, site: Path, parent: Parent
) -> None:
    (site / "raising.py").write_text(RAISING)
    names = sorted(some_data.glob("*.json"))
    for number, path in enumerate(names):
        path.write_text(json.dumps({"plot": ["ship ship"] if number == 3 else ["war love"]}))
    toml, store = tmp_path / "own.toml", tmp_path / "s"
    model = checkpoints["clip_text"]
    toml.write_text(f'[backbones.own]\nadapter = "raising:load"\nmodel = "{model}"\n')
    typed = [sys.executable, str(ROOT / "cli.py"), "build", "--config", str(toml)]
    typed += ["--data-dir", str(some_data), "--features", "own", "--views", "16", "--resume"]
    typed += ["--chunk", "2", "--producers", "2"]

    def run(*more: str) -> tuple[int, str]:
        got = warm.run(
            [*typed, *more],
            capture_output=True,
            text=True,
            env=environment(site),
        )
        return got.returncode, got.stderr

    code, errors = run("--store", str(store), "--devices", "cpu,cpu")
    assert code == 1, errors
    assert "Chunk 1: own failed on rows" in errors
    assert "the device failed" in errors
    assert committed(store) == 3
    assert 1 not in FeatureStore(store).ledger
    open_gate(site)
    assert run("--store", str(store), "--devices", "cpu,cpu")[0] == 0
    assert run("--store", str(tmp_path / "golden"), "--device", "cpu")[0] == 0
    assert tree_digest(store) == tree_digest(tmp_path / "golden")


# Additions and changes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"views": 16}, marks=pytest.mark.nightly),
        {"features": ("blip2_text", "clip_text")},
    ],
    ids=["views", "features"],
)
def test_additions(
    configure: Any, some_data: Path, tmp_path: Path, parent: Parent, change: dict[str, Any]
) -> None:
    golden, store = tmp_path / "golden", tmp_path / "s"
    build(configure(golden, data_dir=some_data))
    shutil.copytree(golden, store, ignore=shutil.ignore_patterns("*.log"))
    build(configure(golden, data_dir=some_data, resume=True, **change))
    assert done(parent(configure(store, data_dir=some_data, **change)))["built"] == 8
    # Each worker has joined the extension that one of them created.
    assert len(list((store / "records" / "runs").glob("*.log"))) == 2
    assert tree_digest(store) == tree_digest(golden)


def test_changed_inputs_are_rebuilt(
    configure: Any, some_data: Path, tmp_path: Path, parent: Parent
) -> None:
    golden, store = tmp_path / "golden", tmp_path / "s"
    build(configure(store, data_dir=some_data))
    min(some_data.glob("*.json")).write_text('{"plot": "another film"}')
    build(configure(golden, data_dir=some_data))
    config = configure(store, data_dir=some_data)
    assert done(parent(config, "--remake-changed"))["built"] == 4
    assert tree_digest(store) == tree_digest(golden)


def test_a_worker_joins_when_another_one_has_made_the_change(
    golden_text: Path, tmp_path: Path
) -> None:
    """It waits for the lock alone, because a plan needed that; the other one shares it for long."""
    store = tmp_path / "s"
    shutil.copytree(golden_text, store)
    ledger = store / "records" / "ledger.jsonl"
    calls: list[None] = []

    def prepare() -> None:
        calls.append(None)
        if len(calls) == 2:
            durable.replace_file(ledger, ledger.read_bytes())

    other = take_lock(store, worker=True, shared=True)
    lock = worker._enter(store, lambda *_, **__: None, prepare, worker._state(store))
    assert lock.is_shared
    assert len(calls) == 2
    for each in (lock, other):
        each.release()


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--devices", "all", "--resume"], "no CUDA device"),
        (["--devices", "cpu,gpu", "--resume"], "'gpu' is not a device"),
        (["--devices", "cpu,auto", "--resume"], "'auto' is not a device"),
        (["--devices", "cuda:0,cuda:1", "--resume"], "--devices cuda:0: this torch"),
        (["--devices", "cpu,cpu"], "give --resume as well"),
        (["--devices", "cpu,cpu", "--device", "cpu", "--resume"], "exclude each other"),
        (["--devices", "cpu,cpu", "--slots", "9999999", "--resume"], "slots between producers"),
    ],
    ids=["all", "unknown", "auto", "absent", "resume", "device", "memory"],
)
def test_mistakes(
    configure: Any, tmp_path: Path, site: Path, typed: list[str], message: str
) -> None:
    store = tmp_path / "s"
    command = arguments(configure(store))
    at = command.index("--device")
    command[at : at + 2] = typed
    ran = warm.run(command, capture_output=True, text=True, env=environment(site))
    assert ran.returncode == 2, ran.stderr
    assert message in ran.stderr
    assert not (store / "zarr.json").exists()
