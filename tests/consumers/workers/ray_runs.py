"""Runs of the command line with Ray in a network namespace of their own, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from consumers.backbones.config import BackboneConfig
from consumers.build import build
from consumers.config import BuildConfig
from tests.conftest import ROOT

FEATURE, ADAPTER = "slow", "tests.consumers.workers.ray_models:slow_text"
SHAPE: dict[str, Any] = {"views": 4, "chunk": 4, "producers": 1, "threads": 1, "device": "cpu"}
MARK = "MANYVIEWS_TEST_RUN"
_NAMESPACE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@cache
def missing() -> str:
    """What this machine lacks for tests of Ray; empty if nothing."""
    if find_spec("ray") is None:
        return "Ray is not installed: pip install 'manyviews[ray]'"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "unshare (util-linux) or ip (iproute2) is not installed"
    done = subprocess.run([*_NAMESPACE, "true"], capture_output=True, timeout=60)
    return "" if done.returncode == 0 else "this machine allows no network namespaces (unshare -rn)"


def golden(data: Path, store: Path) -> None:
    """A plain build."""
    backbone = BackboneConfig(adapter=ADAPTER, model="fake", batch_size=8)
    build(
        BuildConfig(
            data_dir=data, store=store, features=(FEATURE,), backbones={FEATURE: backbone}, **SHAPE
        )
    )


def command(data: Path, store: Path, *more: str) -> list[str]:
    """A build as a user types it; its adapter is declared in a file beside the store."""
    toml = store.with_suffix(".toml")
    toml.write_text(
        f'[backbones.{FEATURE}]\nadapter = "{ADAPTER}"\nmodel = "fake"\nbatch_size = 8\n'
    )
    typed = [sys.executable, str(ROOT / "cli.py"), "build", "--config", str(toml)]
    typed += ["--data-dir", str(data), "--store", str(store), "--features", FEATURE, "--resume"]
    for name, value in SHAPE.items():
        typed += [f"--{name}", str(value)]
    return [*typed, *more]


def namespaced(typed: list[str]) -> list[str]:
    """The same command in a network namespace with nothing but ``lo``."""
    return [*_NAMESPACE, *typed]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a run, which marks all of its processes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), MARK: uuid.uuid4().hex, **more}


def left(mark: str, contains: str = "", wait_s: float = 15.0) -> list[str]:
    """The processes of a run that are still there after some seconds; they are killed then."""
    deadline = time.monotonic() + wait_s
    while (found := processes(mark, contains)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return list(found.values())


def processes(mark: str, contains: str = "") -> dict[int, str]:
    """The processes of a run whose command line contains a text, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (
                line
                and contains in line
                and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            ):
                found[int(folder.name)] = line
    return found


def workers(store: Path) -> set[str]:
    """The workers that have started to build a store, by its logs."""
    found = set()
    for log in (store / "records" / "runs").glob("*.log"):
        events = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        found |= {event["worker"] for event in events if event["event"] == "started"}
    return found
