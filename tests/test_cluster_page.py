"""The scripts of ``docs/cluster.md`` are run as they are.

``srun`` and ``scontrol`` are substitutes: ``srun`` starts the tasks that a script asks for. The
names ``manyviews`` and ``torchrun`` lead to the real programs, with options that make a build
small: few views, samples and chunks, and a tiny checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from tests import warm
from tests.conftest import ROOT, tree_digest

PAGE = (ROOT / "docs/cluster.md").read_text("utf-8")
SAMPLES = 24
DEVICES = "--devices cpu"
SMALL = (
    "--views 8 --chunk 4 --features clip_text --batch-size clip_text=8 --threads 1 --producers 1"
)
# ``cli.py``, except that workers of ``--devices`` are forked as well.
BUILD = """
from tests import forked
forked.install()
from manyviews.main import main
main()
"""
# Passes a program on to this process: prints what it prints, exits as it does, passes SIGTERM on.
PASSED_ON = """#!{python} -IS
import json, os, signal, socket, sys
known = socket.socket(socket.AF_UNIX)
known.connect({address!r})
stream = known.makefile("rwb")
asked = [os.path.basename(sys.argv[0]), sys.argv[1:], dict(os.environ), os.getcwd()]
stream.write(json.dumps(asked).encode() + b"\\n")
stream.flush()
pid = int(stream.readline())
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
answer = json.loads(stream.readline())
sys.stdout.write(answer["output"])
sys.stderr.write(answer["errors"])
sys.exit(answer["code"] if answer["code"] >= 0 else 128 - answer["code"])
"""
# Starts as many tasks as SLURM_NTASKS says, and exits with the highest of their codes. A task gets
# SIGTERM when the file STOP exists.
SRUN = """#!/bin/bash
if [ -n "$STOP" ]; then
  "$@" & task=$!
  until [ -e "$STOP" ]; do sleep 0.02; done
  kill -TERM $task; wait $task; exit $?
fi
pids=()
for ((rank = 0; rank < ${SLURM_NTASKS:-1}; rank++)); do SLURM_PROCID=$rank "$@" & pids+=($!); done
highest=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; ((code > highest)) && highest=$code; done
exit $highest
"""


class Cluster:
    """A folder ``/shared``, the substituted programs, and what they run."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        self.shared = folder / "shared"
        self.store = self.shared / "features"
        self._checkpoint = checkpoint
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / "s"))
        self._listening.listen(16)
        passed_on = PASSED_ON.format(python=sys.executable, address=str(folder / "s"))
        programs = {"manyviews": passed_on, "torchrun": passed_on, "srun": SRUN}
        programs["scontrol"] = f'#!/bin/bash\necho "$@" >> {folder}/requeued\n'
        for name, text in programs.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)
        self.requeued = folder / "requeued"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def run(self, script: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a script of the page."""
        path = f"{self._bin}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", "-c", script.replace("/shared", str(self.shared))],
            env={**os.environ, **variables, "PATH": path, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            name, arguments, environment, folder = json.loads(stream.readline())
            # A fork has the values of what libraries read on import.
            free = {k: v for k, v in environment.items() if not k.startswith(warm._READ_AT_IMPORT)}
            known = {k: v for k, v in os.environ.items() if k.startswith(warm._READ_AT_IMPORT)}
            command = ["-m", "torch.distributed.run", *arguments]
            if name == "manyviews":
                command = ["-c", BUILD, *self.small(arguments)]
            with warm.Popen(
                [sys.executable, *command],
                cwd=folder,
                env={**free, **known, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                stream.write(f"{process.pid}\n".encode())
                stream.flush()
                output, errors = process.communicate(timeout=300)
            answer = {"output": output, "errors": errors, "code": process.returncode}
            stream.write(json.dumps(answer).encode() + b"\n")

    def small(self, arguments: list[str]) -> list[str]:
        """The arguments of a build on the CPU, with options that make it small."""
        options = [*SMALL.split(), "--model", f"clip_text={self._checkpoint}"]
        if "--devices" in arguments:
            arguments[arguments.index("--devices") + 1] = "cpu,cpu"
        elif "--device" in arguments:
            arguments[arguments.index("--device") + 1] = "cpu"
        else:
            options += ["--device", "cpu"]
        return [*arguments, *options]


@pytest.fixture(scope="module")
def data(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples without a bad one, which would change the exit code."""
    folder = tmp_path_factory.mktemp("cluster") / "dataset"
    folder.mkdir()
    posters = sorted((demo_data / "dataset").glob("*.jp*g"))
    pairs = [(poster, poster.with_suffix(".json")) for poster in posters[1:]]
    for poster, text in [pair for pair in pairs if pair[1].exists()][:SAMPLES]:
        shutil.copy(poster, folder)
        shutil.copy(text, folder)
    return folder


@pytest.fixture(scope="module")
def golden(
    data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The digest of a build by one process."""
    store = tmp_path_factory.mktemp("golden") / "store"
    typed = ["build", "--data-dir", str(data), "--store", str(store), *SMALL.split()]
    typed += ["--model", f"clip_text={checkpoints['clip_text']}", "--device", "cpu"]
    warm.run([sys.executable, str(ROOT / "cli.py"), *typed], check=True, capture_output=True)
    assert FeatureStore(store).spec.chunks == 6
    return tree_digest(store)


@pytest.fixture
def cluster(tmp_path: Path, data: Path, checkpoints: dict[str, str]) -> Iterator[Cluster]:
    made = Cluster(tmp_path, checkpoints["clip_text"])
    (made.shared / "imdb").mkdir(parents=True)
    (made.shared / "imdb/dataset").symlink_to(data)
    yield made
    made.close()


def script_of(title: str) -> str:
    """The script of a section of the page."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    [script] = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(script)


def outputs(started: list[subprocess.Popen[str]]) -> list[str]:
    """What scripts printed, each of which succeeded."""
    printed = []
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        printed.append(output)
    return printed


def is_golden(cluster: Cluster, golden: dict[str, str]) -> bool:
    assert verify(cluster.store).findings == []
    return tree_digest(cluster.store) == golden


def test_the_job_array(cluster: Cluster, golden: dict[str, str]) -> None:
    script = script_of("SLURM: one GPU for each task of an array")
    assert re.findall(r"^#SBATCH --(array|requeue|signal)", script, re.MULTILINE)
    tasks = [
        cluster.run(script, SLURM_ARRAY_TASK_ID=str(k), SLURM_ARRAY_TASK_COUNT="3", STOP="")
        for k in range(3)
    ]
    assert all("done" in printed for printed in outputs(tasks))
    assert is_golden(cluster, golden)
    assert not cluster.requeued.exists()


def test_a_task_that_gets_sigterm_is_queued_again(cluster: Cluster, golden: dict[str, str]) -> None:
    script = script_of("SLURM: one GPU for each task of an array")
    array = {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_ID": "0"}
    created = str(cluster.store / "zarr.json")
    printed = outputs([cluster.run(script, **array, SLURM_JOB_ID="77", STOP=created)])
    assert cluster.requeued.read_text() == "requeue 77\n", printed
    assert not FeatureStore(cluster.store).complete
    assert outputs([cluster.run(script, **array)])
    assert is_golden(cluster, golden)


def test_a_task_that_is_refused_fails(cluster: Cluster) -> None:
    script = script_of("SLURM: one GPU for each task of an array")
    task = cluster.run(script, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="2")
    output, _ = task.communicate(timeout=300)
    assert task.returncode == 2, output
    assert "--worker is K/N" in output
    assert not cluster.requeued.exists()


def test_all_devices_of_several_nodes(cluster: Cluster, golden: dict[str, str]) -> None:
    # The tests have no GPU, so that each node has one CPU device.
    script = script_of("SLURM: all GPUs of several nodes").replace("--devices all", DEVICES)
    assert DEVICES in script
    outputs([cluster.run(script, SLURM_NTASKS="2")])
    assert is_golden(cluster, golden)


def indexed_job() -> dict[str, Any]:
    section = PAGE.partition("\n## Kubernetes: an indexed job\n")[2].partition("\n## ")[0]
    [text] = re.findall(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    job: dict[str, Any] = pytest.importorskip("yaml").safe_load(text)
    return job


def test_the_indexed_job(cluster: Cluster, golden: dict[str, str]) -> None:
    spec = indexed_job()["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert int(variables["WORKERS"]) == spec["completions"] == spec["parallelism"]
    [script] = container["args"]
    pods = [cluster.run(script, JOB_COMPLETION_INDEX=str(k), WORKERS="2") for k in range(2)]
    outputs(pods)
    assert is_golden(cluster, golden)


def test_the_indexed_job_passes_sigterm_on_and_forgives_placeholders(
    cluster: Cluster, data: Path, golden: dict[str, str]
) -> None:
    [container] = indexed_job()["spec"]["template"]["spec"]["containers"]
    [script] = container["args"]
    stop = "until [ -e /shared/features/zarr.json ]; do sleep 0.02; done; kill -TERM $$"
    signalled = script.replace("build=$!\n", f"build=$!\n{stop}\n")
    assert signalled != script
    pod = cluster.run(signalled, JOB_COMPLETION_INDEX="0", WORKERS="1")
    output, _ = pod.communicate(timeout=300)
    assert pod.returncode == 128 + signal.SIGTERM, output
    assert not FeatureStore(cluster.store).complete
    outputs([cluster.run(script, JOB_COMPLETION_INDEX="0", WORKERS="1")])
    assert is_golden(cluster, golden)
    shutil.rmtree(cluster.store)
    (cluster.shared / "imdb/dataset").unlink()
    shutil.copytree(data, cluster.shared / "imdb/dataset")
    min((cluster.shared / "imdb/dataset").glob("*.json")).write_text("{")
    outputs([cluster.run(script, JOB_COMPLETION_INDEX="0", WORKERS="1")])
    assert len(FeatureStore(cluster.store).bad_inputs) == 1


def test_torchrun(cluster: Cluster, golden: dict[str, str]) -> None:
    outputs([cluster.run(script_of("torchrun"))])
    assert is_golden(cluster, golden)


def test_two_shells(cluster: Cluster, golden: dict[str, str]) -> None:
    lines = script_of("By hand").splitlines()
    assert len(lines) == 2
    outputs([cluster.run(line) for line in lines])
    assert is_golden(cluster, golden)
