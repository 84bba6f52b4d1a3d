"""``--ray``: real workers on a real Ray, which Ray starts; and what is refused before it starts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from consumers.workers.on_ray.access import authentication, require_private
from consumers.workers.on_ray.driver import worker_configs
from consumers.workers.outcome import Outcome
from consumers.workers.share import Machine, Share
from featurestore.errors import ConfigError
from featurestore.storage import creation
from featurestore.storage.store import LOCK, FeatureStore
from featurestore.verify.store import verify
from tests.conftest import tree_digest
from tests.consumers.workers import ray_runs as runs
from tests.consumers.workers.ray_models import LOGS, SLEEP
from tests.faults.fakes import config as fake_config
from tests.faults.fakes import loaded, make_data

SAMPLES = 24


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(bool(runs.missing()), reason=runs.missing() or "nothing is missing")
def test_two_workers_on_a_local_cluster_build_the_golden_tree(
    tmp_path: Path, short_tmp: Path
) -> None:
    data = make_data(tmp_path / "data", SAMPLES)
    runs.golden(data, tmp_path / "golden")
    store, home = tmp_path / "store", tmp_path / "home"
    logs = store / "records" / "runs"
    environment = runs.environment(home, TMPDIR=str(short_tmp), **{LOGS: str(logs), SLEEP: "0.05"})
    typed = runs.command(data, store, "--ray", "local", "--ray-workers", "2", "--json")
    done = subprocess.run(
        runs.namespaced(typed), env=environment, capture_output=True, text=True, timeout=240
    )
    assert runs.left(environment[runs.MARK]) == []
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["built"] == SAMPLES, done.stdout
    assert tree_digest(store) == tree_digest(tmp_path / "golden")
    assert verify(store).findings == []
    assert runs.workers(store) == {"0/2", "1/2"}
    assert not (home / ".ray").exists(), "a token was written to the home folder"
    assert list(short_tmp.glob("mv-ray-*")) == []


VALUES: dict[str, Any] = {"store": Path("s"), "data_dir": Path("d"), "resume": True}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ray": "local"}, "--ray needs --ray-workers N"),
        ({"ray_workers": 2}, "--ray-workers needs --ray"),
        ({"ray": "ray://head:10001", "ray_workers": 1}, "HOST:PORT of a cluster's head"),
        ({"ray": "local", "ray_workers": 1, "device": "cuda:1"}, "--device cuda:1 and --ray excl"),
        ({"ray": "local", "ray_workers": 1, "worker": Share(0, 2)}, "--worker and --ray exclude"),
        ({"ray": "local", "ray_workers": 1, "devices": ("cpu",)}, "--devices and --ray exclude"),
        ({"ray": "local", "ray_workers": 1, "resume": False}, "give --resume as well"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        BuildConfig(**VALUES | options)


def spot(host: str, cpus: int, free_bytes: int = 1 << 40) -> Any:
    return SimpleNamespace(host=host, cpus=cpus, version="", free_bytes=free_bytes)


def test_workers_of_one_machine_divide_its_cpus() -> None:
    config = BuildConfig(**VALUES, ray="local", ray_workers=3)
    spots = [spot("one", 8), spot("two", 4), spot("one", 8)]
    found = worker_configs(config, spots, "cpu")
    assert [str(each.worker) for each in found] == ["0/3", "1/3", "2/3"]
    assert [each.producers for each in found] == [4, 3, 3]
    assert [each.threads for each in found] == [4, 4, 4]
    assert {(each.ray, each.ray_workers, each.device) for each in found} == {(None, 0, "cpu")}
    gpus = worker_configs(config, spots, "cuda")
    assert {(each.threads, each.device) for each in gpus} == {(0, "cuda")}


def test_given_numbers_are_those_of_a_machine() -> None:
    config = BuildConfig(**VALUES, ray="local", ray_workers=2, producers=5, threads=3, slots=9)
    found = worker_configs(config, [spot("one", 64)] * 2, "cpu")
    assert [each.producers for each in found] == [3, 2]
    assert [each.threads for each in found] == [2, 1]
    assert [each.slots for each in found] == [5, 4]


def test_workers_of_one_machine_need_its_memory_together() -> None:
    config = BuildConfig(**VALUES, ray="local", ray_workers=3, producers=5, slots=9)
    spots = [spot("one", 8, 500), spot("two", 4, 300), spot("one", 8, 400)]
    machines = [
        each.worker and each.worker.machine for each in worker_configs(config, spots, "cpu")
    ]
    assert machines == [Machine(9, 400), Machine(9, 300), Machine(9, 400)]


def test_workers_that_need_more_memory_than_their_machine_has_are_refused(tmp_path: Path) -> None:
    """Although each of the two would fit alone."""
    data, store = make_data(tmp_path / "data", SAMPLES), tmp_path / "store"
    asked = fake_config(data, store, resume=True, ray="local", ray_workers=2, slots=8)

    def refusal(free_bytes: int) -> str:
        first = worker_configs(asked, [spot("one", 4, free_bytes)] * 2, "cpu")[0]
        with loaded(), pytest.raises(ConfigError) as caught:
            build(first)
        return str(caught.value)

    found = re.match(r"8 slots between producers and backbones need ([0-9,]+) bytes", refusal(0))
    assert found is not None
    needed = int(found[1].replace(",", ""))
    assert f"{needed - 1:,} are free" in refusal(needed - 1)
    assert not store.exists()
    with loaded():
        build(worker_configs(asked, [spot("one", 4, needed)] * 2, "cpu")[0])
    assert FeatureStore(store).complete


def test_a_local_cluster_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with authentication("local"):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        first = os.environ["RAY_AUTH_TOKEN"]
    assert "RAY_AUTH_TOKEN" not in os.environ
    with authentication("local"):
        assert os.environ["RAY_AUTH_TOKEN"] != first
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    with authentication("local"):
        assert os.environ["RAY_AUTH_TOKEN"] == "given"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with authentication("head:6379"):
        assert "RAY_AUTH_TOKEN" not in os.environ


def test_no_cluster_is_open_to_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    require_private("127.0.0.1")
    with pytest.raises(ConfigError, match="lets everybody who reaches"):
        require_private("192.0.2.7")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    require_private("192.0.2.7")


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    """Ray itself would try for minutes."""
    data = make_data(tmp_path / "data", 1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        typed = runs.command(data, tmp_path / "store", "--ray", address, "--ray-workers", "1")
        done = subprocess.run(
            typed,
            env=runs.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2, done.stderr
    assert f"No Ray cluster could be used at {address}: " in done.stderr
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_without_ray_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    data = make_data(tmp_path / "data", 1)
    monkeypatch.setitem(sys.modules, "consumers.workers.on_ray.cluster", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "consumers.workers.on_ray.cluster")
    config = BuildConfig(
        data_dir=data, store=tmp_path / "store", resume=True, ray="local", ray_workers=1
    )
    with pytest.raises(ConfigError, match=r"pip install 'manyviews\[ray\]'"):
        build(config)
    assert not (tmp_path / "store").exists()


def test_a_lock_that_another_worker_creates_at_this_moment_is_no_unknown_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    (store / "records" / "runs").mkdir(parents=True)
    looks = []

    def is_file(path: Path) -> bool:
        found = path.is_file()
        looks.append(path)
        (store / LOCK).touch()
        return found

    monkeypatch.setattr(creation, "is_file", is_file)
    assert creation.state_of(store) == "unfinished"
    assert len(looks) == 2


def test_chunks_that_are_recorded_and_sealed_between_two_looks_are_seen(tmp_path: Path) -> None:
    runs.golden(make_data(tmp_path / "data", SAMPLES), tmp_path / "store")
    ledger = tmp_path / "store" / "records" / "ledger.jsonl"
    lines = ledger.read_bytes()
    ledger.write_bytes(lines[: lines.index(b"\n") + 1])
    outcome = Outcome(tmp_path / "store")
    assert outcome.look() == {"samples": SAMPLES, "done": 4}
    assert outcome.settled() is None
    ledger.write_bytes(lines)
    store = outcome.settled()
    assert store is not None
    assert store.complete
