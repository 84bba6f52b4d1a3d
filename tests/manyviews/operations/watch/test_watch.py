"""``status`` of a real build in another process, which it must not disturb."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from consumers.progress import RunLog
from featurestore.errors import StoreLockedError
from featurestore.storage.store import LOCK, RUNS, FeatureStore
from featurestore.storage.writer import take_lock
from featurestore.system.locks import FileLock, lock_holder
from featurestore.verify.store import verify
from manyviews import main
from manyviews.operations.watch.watch import Looker, watch
from tests import warm
from tests.conftest import ROOT, tree_digest

CLI = [sys.executable, str(ROOT / "cli.py")]
CHUNKS = 12


@pytest.fixture(scope="module")
def config(demo_data: Path, checkpoints: dict[str, str]) -> BuildConfig:
    """A build of twelve chunks of four samples, with text features only."""
    return BuildConfig(
        data_dir=demo_data / "dataset",
        store=Path("nowhere"),
        models={"clip_text": checkpoints["clip_text"]},
        features=("clip_text",),
        views=8,
        chunk=4,
        producers=1,
        device="cpu",
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.returncode
        assert time.monotonic() < deadline
        time.sleep(0.002)


def committed(store: Path) -> int:
    ledger = store / "records/ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.is_file() else 0


@pytest.fixture(scope="module")
def interrupted(config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A build in another process that was stopped, and the output of a watching process."""
    store = tmp_path_factory.mktemp("watched") / "store"
    typed: list[object] = [
        "--data-dir",
        config.data_dir,
        "--store",
        store,
        "--features",
        "clip_text",
    ]
    typed += ["--views", 8, "--chunk", 4, "--producers", 1, "--device", "cpu", "-q"]
    typed += ["--model", f"clip_text={config.models['clip_text']}"]
    with warm.Popen([*CLI, "build", *map(str, typed)]) as process:
        wait_for(lambda: committed(store) >= 3, process)
        process.send_signal(
            signal.SIGSTOP
        )  # so that the build does not finish before it is watched
        stopped_at = committed(store)
        with warm.Popen(
            [*CLI, "status", "--store", str(store), "--watch", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watcher:
            assert watcher.stdout is not None
            first = watcher.stdout.readline()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            built = process.wait(60)
            rest, errors = watcher.communicate(timeout=60)
    return {
        "store": store,
        "pid": process.pid,
        "stopped_at": stopped_at,
        "built": built,
        "code": watcher.returncode,
        "looks": [json.loads(line) for line in [first, *rest.splitlines()]],
        "errors": errors,
    }


def test_a_build_in_another_process_is_watched_until_it_exits(interrupted: dict[str, Any]) -> None:
    assert interrupted["built"] == 143
    first, *_, last = interrupted["looks"]
    assert first["holders"][0][0] == interrupted["pid"]
    assert first["running"]
    assert first["committed"] == interrupted["stopped_at"]
    assert first["done"] == 4 * first["committed"] < first["samples"] == 48
    assert first["samples_per_s"] > 0
    assert first["views_per_s"] == pytest.approx(8 * first["samples_per_s"], abs=0.01)
    assert first["eta_s"] is not None
    assert first["bad_by_reason"] == {}
    assert (last["holders"], last["running"], last["ended"]) == ([], False, "interrupted")
    assert last["eta_s"] is None
    assert interrupted["code"] == 1
    assert "was interrupted; build --resume continues it" in interrupted["errors"]


def test_watching_does_not_disturb_a_resumed_build(
    interrupted: dict[str, Any], config: BuildConfig, tmp_path: Path
) -> None:
    """Watched as often as possible, with a shared lock each time, it writes the same bytes."""
    store = interrupted["store"]
    again = replace(config, store=store, resume=True)
    failures: list[BaseException] = []

    def work() -> None:
        log = RunLog(store / RUNS)
        try:
            build(again, [log])
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            log.close()

    thread = threading.Thread(target=work)
    thread.start()
    wait = time.monotonic() + 60
    while lock_holder(store / LOCK) is None and time.monotonic() < wait:
        time.sleep(0.001)
    looks = list(watch(store, every_s=0.0))
    thread.join()
    assert not failures
    done = [look.store.done for look in looks]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert [look.ended for look in looks[:-1]] == [""] * (len(looks) - 1)
    assert looks[-1].ended == "complete"
    assert any(look.running and look.samples_per_s > 0 for look in looks)
    assert not verify(store).findings
    build(replace(config, store=tmp_path / "undisturbed"))
    assert tree_digest(store) == tree_digest(tmp_path / "undisturbed")


def test_inspecting_a_lock_does_not_keep_a_process_from_taking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inspection holds a shared lock for an instant; taking the lock waits only for that."""
    path = tmp_path / "lock"
    FileLock(path, tmp_path).release()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    waits: list[float] = []

    def look_away(seconds: float) -> None:
        waits.append(seconds)
        os.close(looking)

    monkeypatch.setattr(time, "sleep", look_away)
    lock = FileLock(path, tmp_path)
    assert len(waits) == 1
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(StoreLockedError):
        FileLock(path, tmp_path)
    assert sum(waits[1:]) <= 0.1
    lock.release()


# Messages ---------------------------------------------------------------------------------------


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in arguments])
        return ended.value.code, *capfd.readouterr()  # type: ignore[return-value]

    return call


@pytest.fixture(scope="module")
def half(config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that lacks one chunk, whose newest log has no end."""
    store = tmp_path_factory.mktemp("half") / "store"
    log = RunLog(store / RUNS)

    def stop(event: str, facts: Any) -> None:
        if event == "chunk" and facts["built"] == 8:
            log.close()  # as after a kill
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(replace(config, store=store), [log, stop])
    return store


def test_status_of_a_build_that_was_killed(half: Path, run: Any) -> None:
    code, output, _ = run("status", "--store", half)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == f"{half}: 48 samples x 8 views: clip_text [32]"
    chunks = len(FeatureStore(half).ledger)
    assert "of 12 chunks, not complete; build --resume continues" in lines[1]
    assert f"{4 * chunks} samples done" in lines[1]
    assert lines[2].endswith("views/s in the last build")
    assert lines[3] == "0 bad inputs with placeholders"
    assert lines[4] == "the last build: killed"
    code, output, errors = run("status", "--store", half, "--watch")
    assert code == 1
    assert output == f"{4 * chunks}/48 samples, killed\n"
    assert "was killed" in errors


def test_status_of_a_complete_store(
    demo_data: Path, checkpoints: dict[str, str], config: BuildConfig, tmp_path: Path, run: Any
) -> None:
    broken = tmp_path / "data"
    broken.mkdir()
    for name in sorted(p.name for p in (demo_data / "dataset").glob("*.json"))[1:5]:
        stem = name.removesuffix(".json")
        (broken / name).write_text("{" if stem < "0115" else "{}")
        (broken / f"{stem}.jpg").write_bytes(b"")
    build(replace(config, data_dir=broken, store=tmp_path / "store"))
    code, output, _ = run("status", "--store", tmp_path / "store", "--json")
    facts = json.loads(output)
    bad = sum(p.read_text() == "{" for p in broken.glob("*.json"))
    assert bad
    assert facts["bad_by_reason"] == {"text not-json": bad}
    assert (facts["bad"], facts["complete"], facts["ended"]) == (bad, True, "complete")
    code, output, errors = run("status", "--store", tmp_path / "store", "--watch")
    assert (code, output) == (0, f"4/4 samples, {bad} bad input{'s' * (bad > 1)}, complete\n")
    assert errors == f"{tmp_path / 'store'} is complete.\n"


def test_ctrl_c_ends_a_watch_without_an_error(half: Path) -> None:
    lock = take_lock(half)
    try:
        assert Looker(half).look().ended == ""
        with warm.Popen(
            [*CLI, "status", "--store", str(half), "--watch"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as watcher:
            assert watcher.stdout is not None
            line = watcher.stdout.readline()
            watcher.send_signal(signal.SIGINT)
            output, errors = watcher.communicate(timeout=30)
        assert "/48 samples" in line
        assert (watcher.returncode, output, errors) == (130, "", "")
    finally:
        lock.release()


def test_status_without_a_store_is_an_error(tmp_path: Path, run: Any) -> None:
    code, _, errors = run("status", "--store", tmp_path / "none")
    assert code == 2
    assert "There is no feature store" in errors
    (tmp_path / "thesis.txt").write_text("nothing that a build would write into")
    code, _, errors = run("status", "--store", tmp_path, "--watch")
    assert code == 2
    assert "is not empty and is not a feature store" in errors


@pytest.mark.parametrize("as_json", [False, True])
def test_a_watch_started_before_the_store_waits_for_it(
    half: Path, tmp_path: Path, as_json: bool
) -> None:
    store = tmp_path / "later"
    with warm.Popen(
        [*CLI, "status", "--store", str(store), "--watch", *["--json"] * as_json],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stderr is not None
        waiting = watcher.stderr.readline()
        assert watcher.poll() is None
        shutil.copytree(half, tmp_path / "copy")
        (tmp_path / "copy").rename(store)
        output, errors = watcher.communicate(timeout=60)
    expected = "a build creates it when its models are loaded; waiting.\n"
    assert waiting == f"There is no feature store at {store} yet: {expected}"
    assert watcher.returncode == 1
    assert "was killed" in errors
    assert len(output.splitlines()) == 1
    assert '"ended": "killed"' in output if as_json else output.endswith(", killed\n")
