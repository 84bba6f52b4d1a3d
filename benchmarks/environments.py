"""Separate environments for peers whose requirements conflict with each other's and ours.

An environment is created once, in ``.bench/``. A peer's program keeps running and does a lap on
request, so that it takes turns with contenders in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.measuring import Lap

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench"
_STAMP = "requirements.txt"


def environment(name: str, requirements: list[str]) -> Path:
    """The interpreter of a virtual environment, which is created if it does not exist.

    Args:
        name: of its folder; changed requirements make it again.
        requirements: as pip takes them; pinned, so that a result can be repeated.

    Raises:
        subprocess.CalledProcessError: pip could not install them.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not is_made(name, requirements):
        print(f"making {folder} for {', '.join(requirements)} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / _STAMP).write_text(_stamp(requirements), "utf-8")
    return python


def is_made(name: str, requirements: list[str]) -> bool:
    """Whether an environment is there, so that nothing would be installed."""
    stamp = FOLDER / name / _STAMP
    return stamp.exists() and stamp.read_text("utf-8") == _stamp(requirements)


def _stamp(requirements: list[str]) -> str:
    return "\n".join(requirements) + "\n"


class Peer:
    """A program that answers each line it reads with a line of JSON; ``[units, seconds]`` to a lap.

    Example:
        with Peer(python, "benchmarks/peer_x.py", {"rows": 5}) as peer:
            take_turns({"x": peer.lap, ...}, rounds=9)
    """

    def __init__(self, python: Path, program: str, arguments: dict[str, Any]) -> None:
        """Starts the program, from the repository's root; its only argument is JSON."""
        self._process = subprocess.Popen(
            [python, program, json.dumps(arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def lap(self) -> Lap:
        """One lap in the other process.

        Raises:
            RuntimeError: the program ended; it has said why on standard error.
        """
        units, seconds = self.ask("lap")
        return Lap(units, seconds)

    def ask(self, request: str) -> Any:
        """The program's answer to a line of input.

        Raises:
            RuntimeError: the program ended; it has said why on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer ended with exit code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # its loop ends
        self._process.stdout.close()
        self._process.wait()
