"""Faults of builds on a Ray cluster of a head and two nodes: golden bytes, or a clear error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.consumers.workers import ray_runs as runs
from tests.consumers.workers.ray_models import SLEEP
from tests.faults.fakes import make_data

pytestmark = [
    pytest.mark.skipif(not NIGHTLY, reason="several minutes: only in the nightly profile"),
    pytest.mark.skipif(
        NIGHTLY and bool(runs.missing()), reason=(NIGHTLY and runs.missing()) or "nothing missing"
    ),
]
SAMPLES = 64
# Each fault, and the exit codes that a build may have after it. The cluster does not survive the
# last one.
FAULTS = {
    "none": (0,),
    "actor": (0,),
    "actors": (0,),
    "actor is stopped": (0,),
    "actor gets SIGTERM": (0,),
    "producer": (0,),
    "node": (0,),
    "driver gets SIGTERM": (143, -15),
    "driver": (-9,),
    "GCS": (0, 1),
}


class Program:
    """The program with the cluster."""

    def __init__(self, folder: Path) -> None:
        self._temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
        token["RAY_TMPDIR"] = self._temporary
        environment = runs.environment(folder / "home", **token, **{SLEEP: "0.5"})
        self.mark = environment[runs.MARK]
        module = "tests.consumers.workers.ray_cluster_program"
        self._errors = (folder / "errors").open("w+")
        self._process = subprocess.Popen(
            runs.namespaced([sys.executable, "-m", module]),
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                reply: dict[str, Any] = json.loads(line)
                return reply
        self._errors.seek(0)
        raise RuntimeError(f"the program ended: {self._errors.read()[-4000:]}")

    def build(self, **request: Any) -> dict[str, Any]:
        """Runs one build."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the cluster; nothing of it is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()
        self._errors.close()
        left = runs.left(self.mark, wait_s=60.0)
        shutil.rmtree(self._temporary)
        assert left == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    runs.golden(make_data(folder / "data", SAMPLES), folder / "golden")
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    program = Program(folder)
    yield program
    program.close()


def test_workers_without_a_place_are_refused_after_a_minute(folder: Path, program: Program) -> None:
    """The cluster may be about to get more machines."""
    store = folder / "no-place"
    start = time.monotonic()
    found = program.build(data=str(folder / "data"), store=str(store), fault="none", workers=3)
    assert time.monotonic() - start >= 60
    assert found["code"] == 2, found["output"]
    assert "Ray cannot place 3 workers, each with 1 CPU: the cluster has 2 CPUs" in found["output"]
    assert "--ray-workers" in found["output"]
    assert found["left"] == []
    assert not (store / "zarr.json").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_a_cluster(folder: Path, program: Program, fault: str) -> None:
    store = folder / fault.replace(" ", "-")
    found = program.build(data=str(folder / "data"), store=str(store), fault=fault)
    print(found["output"][-3000:])
    assert found["hit"] == {"none": 0, "actors": 2}.get(fault, 1)
    assert found["code"] in FAULTS[fault], found["output"]
    assert found["left"] == []
    assert verify(store).findings == []
    if found["code"]:
        again = subprocess.run(
            runs.command(folder / "data", store), cwd=ROOT, capture_output=True, timeout=240
        )
        assert again.returncode == 0, again.stderr
    assert tree_digest(store) == tree_digest(folder / "golden")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([signal.SIGKILL], [-signal.SIGKILL]),
        ([signal.SIGINT, signal.SIGINT], [130]),
        # Ray's own processes share the group, as in a terminal or under a scheduler.
        ([signal.SIGTERM, signal.SIGTERM], [-signal.SIGTERM, 143]),
    ],
)
def test_a_local_cluster_ends_with_its_driver(
    folder: Path, short_tmp: Path, numbers: list[int], codes: list[int]
) -> None:
    """With a kill, and with a second stop signal while a chunk is computed."""
    store = folder / "-".join(["local", *map(str, numbers)])
    environment = runs.environment(folder / "home", TMPDIR=str(short_tmp), **{SLEEP: "4"})
    typed = runs.command(folder / "data", store, "--ray", "local", "--ray-workers", "2")
    driver = subprocess.Popen(
        runs.namespaced(typed),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    committed = store / "records/commits"
    deadline = time.monotonic() + 240
    while not committed.is_dir() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in numbers:
        assert driver.poll() is None, driver.communicate()[0]
        os.kill(driver.pid, number)  # the shell and unshare have become the driver by exec
        time.sleep(2)
    output = driver.communicate(timeout=120)[0]
    print(output[-3000:])
    assert driver.returncode in codes, output
    assert runs.left(environment[runs.MARK], wait_s=60) == []
    assert list(short_tmp.glob("mv-ray-*")) == []
    assert verify(store).findings == []
    kept = len(FeatureStore(store).ledger)
    assert 0 < kept < SAMPLES // 4
    again = subprocess.run(
        runs.command(folder / "data", store), cwd=ROOT, capture_output=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert tree_digest(store) == tree_digest(folder / "golden")


def test_an_address_at_which_something_else_answers_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    """It accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        typed = runs.command(
            folder / "data", tmp_path / "store", "--ray", address, "--ray-workers", "1"
        )
        environment = runs.environment(folder / "home", RAY_AUTH_TOKEN="t" * 64)
        done = subprocess.run(typed, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 2, done.stderr
    assert f"No Ray cluster could be used at {address}: " in done.stderr
    assert not (tmp_path / "store").exists()
