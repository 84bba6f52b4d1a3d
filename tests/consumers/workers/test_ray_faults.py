"""Faults of builds on a Ray cluster of a head and two nodes: golden bytes, or a clear error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
