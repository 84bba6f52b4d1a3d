"""Every loop of docs/training.md runs unchanged on a real store of the demo data."""

import os
import socket
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import ROOT
from tests.test_docs import blocks

# All loops run in one process as separate programs, so that libraries are imported once.
RUN = """
import sys
for number, code in enumerate(sys.argv[1:]):
    exec(compile(code, f"block {number}", "exec"), {"__name__": "__main__"})
    print("done", number)
"""


@pytest.fixture
def workplace(built: Path, tmp_path: Path) -> Path:
    for name in ("features", "labels", "imdb"):
        (tmp_path / name).symlink_to(built / name)
    return tmp_path


def test_every_example_of_the_page_on_training_runs(workplace: Path) -> None:
    typed = blocks(ROOT / "docs/training.md", "python")
    assert len(typed) >= 10
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torchrun = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torchrun |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = warm.run(
        [sys.executable, "-c", RUN, *typed],
        cwd=workplace,
        env=os.environ | torchrun,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == len(typed)
