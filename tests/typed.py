"""Runs the examples of a page."""

from __future__ import annotations

import subprocess

from manyviews import main

_RECORD = "python() { printf '%s\\0' \"$@\" $'\\n'; }\n"


def typed(block: str) -> None:
    """Runs the commands of a shell block in this process, where the libraries are loaded."""
    done = subprocess.run(["bash", "-ec", _RECORD + block], capture_output=True, check=True)
    for line in done.stdout.decode().split("\n\0")[:-1]:
        script, *arguments = line.split("\0")[:-1]
        assert script == "cli.py"
        assert main.run_command(arguments) == 0, arguments
