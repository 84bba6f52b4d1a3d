"""A Ray cluster of a head and two nodes on this machine, and builds on it with faults.

Started in a network namespace; standard input has a line of JSON for each build, standard output
a line with what happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.consumers.workers import ray_runs as runs

WAIT_S = 240.0
_OBJECTS_BYTES = 80 << 20


def start() -> Cluster:
    """A head without CPUs for workers, and two nodes with one each."""
    settings = {"num_gpus": 0, "object_store_memory": _OBJECTS_BYTES}
    head = {**settings, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, **settings)
    return cluster


def committed(store: Path) -> int:
    """Number of chunks that workers have committed."""
    return len(list((store / "records" / "commits").glob("[0-9]*[0-9]")))


def kill(contains: str, count: int, number: int = signal.SIGKILL) -> int:
    """Sends a signal to processes of this run; returns how many were there."""
    found = list(runs.processes(os.environ[runs.MARK], contains))[:count]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return len(found)


def fault(cluster: Cluster, kind: str, driver: subprocess.Popen[str]) -> int:
    """Injects a fault; returns the number of processes that it hit."""
    if kind == "actor":
        return kill("ray::Worker", 1)
    if kind == "actors":
        return kill("ray::Worker", 2)
    if kind == "actor is stopped":
        hit = kill("ray::Worker", 1, signal.SIGSTOP)
        time.sleep(2)
        return hit
    if kind == "actor gets SIGTERM":
        return kill("ray::Worker", 1, signal.SIGTERM)
    if kind == "producer":
        return kill("producers/parent.py", 1)
    if kind == "node":
        node = cluster.worker_nodes.copy().pop()
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=_OBJECTS_BYTES)
        return 1
    if kind == "GCS":
        cluster.head_node.kill_gcs_server()
        return 1
    if kind == "driver":
        driver.kill()
        return 1
    if kind == "driver gets SIGTERM":
        driver.terminate()
        return 1
    return 0


def build(cluster: Cluster, request: dict[str, Any]) -> dict[str, Any]:
    """A build with one fault after its first commit."""
    store = Path(request["store"])
    workers = str(request.get("workers", 2))
    typed = runs.command(
        Path(request["data"]), store, "--ray", cluster.address, "--ray-workers", workers
    )
    driver = subprocess.Popen(
        typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + WAIT_S
    while not committed(store) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    hit = fault(cluster, request["fault"], driver)
    try:
        output = driver.communicate(timeout=WAIT_S)[0]
    except subprocess.TimeoutExpired:
        driver.kill()
        output = "hung\n" + driver.communicate()[0]
    kill("ray::Worker", 9, signal.SIGCONT)
    left = runs.left(os.environ[runs.MARK], "producers/parent.py", wait_s=30.0)
    return {"hit": hit, "code": driver.returncode, "output": output, "left": left}


def main() -> None:
    """Serves requests until standard input ends."""
    cluster = start()
    print(json.dumps({"ready": cluster.address}), flush=True)
    for line in sys.stdin:
        print(json.dumps(build(cluster, json.loads(line))), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
