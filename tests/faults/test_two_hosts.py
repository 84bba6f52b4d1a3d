"""Two workers in two network namespaces with two host names, joined by a link that is cut.

They share a folder of this machine, so that a cut link takes nothing from them that they need: the
test shows that workers use the file system alone, and that lock, logs and status name both hosts.
It does not show what a network file system does when its server is out of reach.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from featurestore.system.locks import WorkerHolder, lock_holders
from featurestore.verify.store import verify
from manyviews import main
from tests import warm
from tests.conftest import tree_digest
from tests.faults.harness import COUNTS
from tests.faults.workers import until

SAMPLES = 24
WORKER = """
import ctypes, json, os, socket, sys, time
from pathlib import Path

options = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, CLONE_NEWUTS = 0x40000000, 0x04000000
with open(f"/var/run/netns/{options['namespace']}") as namespace:
    assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()
assert libc.unshare(CLONE_NEWUTS) == 0, ctypes.get_errno()
socket.sethostname(options["host"])

from consumers.build import build
from consumers.config import BuildConfig
from consumers.progress import RunLog
from consumers.workers.share import Share

folder = Path(options["folder"])
own, other = socket.create_server((options["address"], 7000)), (options["other"], 7000)

def reaches_the_other():
    try:
        socket.create_connection(other, timeout=1).close()
    except OSError:
        return False
    return True

def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

waited = False
def observe(event, facts):
    global waited
    if event == "sample" and not waited:
        waited = True
        wait_for(reaches_the_other)
        (folder / f"here-{options['host']}").touch()
        wait_for((folder / "cut").exists)
        assert not reaches_the_other()

values = options["config"]
for name in ("data_dir", "store"):
    values[name] = Path(values[name])
values |= {"features": tuple(values["features"]), "worker": Share.parse(values["worker"])}
config = BuildConfig(**values)
log = RunLog(config.store / "records/runs")
build(config, [log, observe])
log.close()
"""


@dataclass(frozen=True)
class Host:
    """A network namespace, and the address and name of the host in it."""

    namespace: str
    address: str
    name: str


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined by a link."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces with names need root and the program ip")
    number = os.getpid()
    made = [
        Host(f"mv{number}{letter}", f"10.99.0.{n}", f"node-{letter}")
        for n, letter in enumerate("ab", 1)
    ]
    try:
        try:
            for host in made:
                ip("netns", "add", host.namespace)
            peer = ("peer", "name", "cable", "netns", made[1].namespace)
            ip("link", "add", "cable", "netns", made[0].namespace, "type", "veth", *peer)
            for host in made:
                within = ("-n", host.namespace)
                ip(*within, "addr", "add", f"{host.address}/24", "dev", "cable")
                ip(*within, "link", "set", "cable", "up")
        except subprocess.CalledProcessError as e:
            pytest.skip(f"no network namespaces here: {e.stderr.decode().strip()}")
        yield made[0], made[1]
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)


def test_workers_of_two_hosts_whose_link_is_cut(
    hosts: tuple[Host, Host],
    demo_data: Path,
    checkpoints: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    data.mkdir()
    for text in sorted((demo_data / "dataset").glob("*.json"))[:SAMPLES]:
        for file in text.parent.glob(f"{text.stem}.*"):
            shutil.copy(file, data)
    config = {"data_dir": str(data), "views": 8, "chunk": 4, "features": ["clip_text"]}
    config |= {"models": {"clip_text": checkpoints["clip_text"]}, "device": "cpu", "resume": True}
    config |= {"producers": 1, "threads": 1}
    first, second = hosts
    started = []
    for number, (host, other) in enumerate([(first, second), (second, first)]):
        options = {
            "namespace": host.namespace,
            "host": host.name,
            "address": host.address,
            "other": other.address,
            "folder": str(tmp_path),
            "config": {**config, "store": str(store), "worker": f"{number}/2"},
        }
        command = [sys.executable, "-c", WORKER, json.dumps(options)]
        started.append(warm.Popen(command, stderr=subprocess.PIPE, text=True))
    until(lambda: all((tmp_path / f"here-{host.name}").exists() for host in hosts))

    holders = lock_holders(store / "records/runs/lock")
    assert isinstance(holders, list)
    assert all(isinstance(holder, WorkerHolder) for holder in holders)
    names = {holder.host for holder in holders}
    main.run_command(["status", "--store", str(store)])
    status = capsys.readouterr().out
    ip("-n", second.namespace, "link", "set", "cable", "down")
    COUNTS["link cut"] += 1
    (tmp_path / "cut").touch()
    for process in started:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors
    assert names == {first.name, second.name}
    assert f"on {first.name}" in status or f"on {second.name}" in status, status
    logs = [path.name for path in (store / "records/runs").glob("*.log")]
    assert {host.name for host in hosts for log in logs if f"-{host.name}-" in log} == names

    whole = tmp_path / "whole"
    values = {**config, "store": str(whole), "resume": False}
    warm.run([sys.executable, "-c", PLAIN, json.dumps(values)], check=True)
    assert verify(store).findings == []
    assert tree_digest(store) == tree_digest(whole)


PLAIN = """
import json, sys
from pathlib import Path
from consumers.build import build
from consumers.config import BuildConfig

values = json.loads(sys.argv[1])
for name in ("data_dir", "store"):
    values[name] = Path(values[name])
build(BuildConfig(**{**values, "features": tuple(values["features"])}))
"""
