"""``status --watch`` while a build loads its models, before it has written anything new."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from consumers.progress import RunLog
from featurestore.storage.store import RUNS
from featurestore.storage.writer import take_lock
from manyviews.commands.status import status_lines
from manyviews.operations.watch import watch as watching
from tests import warm
from tests.conftest import ROOT

WATCH = [sys.executable, str(ROOT / "cli.py"), "status", "--watch", "--store"]


@pytest.fixture
def config(demo_data: Path, checkpoints: dict[str, str], tmp_path: Path) -> BuildConfig:
    return BuildConfig(
        data_dir=demo_data / "dataset",
        store=tmp_path / "store",
        models={"clip_text": checkpoints["clip_text"]},
        features=("clip_text",),
        views=2,
        chunk=16,
        producers=1,
        device="cpu",
        resume=True,
    )


class Models:
    """An observer of a build whose models take until ``loaded`` is set to load."""

    def __init__(self) -> None:
        self.loading, self.loaded = threading.Event(), threading.Event()

    def __call__(self, event: str, facts: Any) -> None:
        if event == "loading":
            self.loading.set()
            assert self.loaded.wait(120)


def watched(config: BuildConfig, stream: str) -> tuple[str, str, str, int]:
    """What a watch of a loading build prints first on ``stream``, then the rest, and its code."""
    models, log = Models(), RunLog(config.store / RUNS)
    with ThreadPoolExecutor(1) as pool, closing(log):
        done = pool.submit(build, config, [models, log])
        try:
            assert models.loading.wait(60)
            with warm.Popen(
                [*WATCH, str(config.store)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as watcher:
                first = getattr(watcher, stream).readline()
                models.loaded.set()
                output, errors = watcher.communicate(timeout=60)
        finally:
            models.loaded.set()
        assert done.result().samples == 48
    return first, output, errors, watcher.returncode


def stop_at_first_chunk(event: str, _facts: Any) -> None:
    if event == "chunk":
        raise KeyboardInterrupt


def test_an_unfinished_creation_whose_build_loads_its_models(config: BuildConfig) -> None:
    take_lock(config.store).release()  # all that a killed creation may leave
    first, output, errors, code = watched(config, "stderr")
    assert first == (
        f"There is no feature store at {config.store} yet: a build holds its lock and is loading "
        "its models, or is creating it; waiting.\n"
    )
    assert output.endswith(", complete\n")
    assert (errors, code) == (f"{config.store} is complete.\n", 0)


def test_a_resumed_build_that_loads_its_models(config: BuildConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(config, [stop_at_first_chunk])
    first, output, errors, code = watched(config, "stdout")
    assert "/48 samples, " in first
    assert first.endswith(" is loading its models or repairing\n")
    assert "loading" not in output
    assert output.endswith(", complete\n")
    assert (errors, code) == (f"{config.store} is complete.\n", 0)


def test_a_watch_reports_each_change_of_what_it_waits_for(
    config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build on an empty folder starts, is killed while it loads its models, and is repeated."""
    reports: list[bool] = []
    locks: list[Any] = []
    steps: list[Callable[[], Any]] = [
        lambda: None,
        lambda: locks.append(take_lock(config.store)),
        lambda: None,
        lambda: locks.pop().release(),
        lambda: build(config),
    ]
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: steps.pop(0)())
    monkeypatch.setattr(watching, "time", clock)
    (last,) = watching.watch(config.store, waiting=reports.append)
    assert reports == [False, True, False]
    assert last.ended == "complete"


def test_the_full_status_says_that_models_are_loaded(config: BuildConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(config, [stop_at_first_chunk])
    lock = take_lock(config.store)
    try:
        progress = watching.Looker(config.store).look()
        assert status_lines(progress)[-1].endswith(", which is loading its models or repairing")
        assert progress.is_starting
        # The lock of a build that has logged its end is held for an instant.
        log = RunLog(config.store / RUNS)
        for event in ("started", "interrupted"):
            log(event, {"samples": 48, "done": 16, "views": 2, "slots": 4, "chunk": 16})
        log.close()
        progress = watching.Looker(config.store).look()
        assert (progress.running, progress.is_starting) == (False, False)
        assert "loading" not in status_lines(progress)[-1]
    finally:
        lock.release()
    assert replace(progress, holders=()).ended == "interrupted"
