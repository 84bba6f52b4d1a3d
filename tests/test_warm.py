"""A forked program has the environment, output and exit code of a new interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm

# Everything that a program can observe about its start.
SEEN = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[:2], "folder": os.getcwd(), "variable": os.environ["MARK"],
    "name": __name__, "input": sys.stdin.read(), "site": "sitecustomize" in sys.modules,
    "streams": [[s.encoding, s.errors, s.line_buffering] for s in (sys.stdout, sys.stderr)],
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:3],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "leads": os.getsid(0) == os.getpid(),
}))
"""
ENDS = {
    "done": "pass",
    "a code": "raise SystemExit(3)",
    "a message": "import sys; sys.exit('words')",
    "an error": "1 / 0",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "at exit": "import atexit; atexit.register(print, 'last'); print('first')",
    "buffered": "import os, sys; sys.stdout.write('lost'); os._exit(4)",
}
KINDS = ("-c", "-m", "script")


def both(call: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The results of ``call`` for both ways to start a program."""
    return call(subprocess.Popen), call(warm.Popen)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("")
    return os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}:{tmp_path}", "MARK": "é \udcff"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_program_has_the_same_environment(
    tmp_path: Path, environment: dict[str, str], kind: str
) -> None:
    (tmp_path / "program.py").write_text(SEEN)
    program: dict[str, list[str | Path]] = {
        "-c": ["-c", SEEN],
        "-m": ["-m", "program"],
        "script": [tmp_path / "program.py"],
    }

    def call(popen: Any) -> Any:
        with popen(
            [sys.executable, *program[kind], "one", "--two"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
            text=True,
        ) as process:
            output, errors = process.communicate("typed", timeout=60)
        return json.loads(output), errors

    fresh, forked = both(call)
    assert forked == fresh
    assert forked[0]["input"] == "typed"


@pytest.mark.parametrize("name", ENDS)
def test_a_forked_program_exits_in_the_same_way(name: str) -> None:
    def call(popen: Any) -> Any:
        command = [sys.executable, "-c", ENDS[name]]
        with popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors.splitlines()[-1:]

    fresh, forked = both(call)
    assert forked == fresh


def test_a_forked_program_can_be_killed_and_waited_for() -> None:
    program = "import time; print('here', flush=True); time.sleep(600)"
    with warm.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait(60) == process.poll() == -signal.SIGKILL


def test_programs_that_a_fork_cannot_run_are_refused() -> None:
    with pytest.raises(AssertionError, match="HF_HUB_OFFLINE is read at import"):
        warm.run([sys.executable, "-c", ""], env=os.environ | {"HF_HUB_OFFLINE": "yes"})
    for arguments in (["sh", "-c", ""], [sys.executable, "-E", "-c", ""]):
        with pytest.raises(AssertionError):
            warm.run(arguments)
