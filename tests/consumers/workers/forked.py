"""Worker processes that are forked from their parent, which has imported all libraries.

A worker imports torch and transformers, which takes 5 s of a core; a fork takes 20 ms. Only the
start differs: pipes, arguments, signals and what the worker runs are those of a new interpreter.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import subprocess
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from producers import parent, process

_SIGNALS = {*range(1, 32), signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2}


class ForkedWorker:
    """Replaces ``subprocess.Popen`` for worker processes."""

    count = 0
    # Called in each forked process with its number, from 0.
    prepare: Callable[[int], object] = staticmethod(lambda _: None)

    def __init__(self, arguments: list[str], *, stderr: Any, pass_fds: Any, **_: Any) -> None:
        self.returncode: int | None = None
        number, ForkedWorker.count = ForkedWorker.count, ForkedWorker.count + 1
        self.pid = os.fork()
        if self.pid == 0:
            script = arguments.index("-P") + 1
            _become(number, arguments[script + 1 :], stderr.fileno(), pass_fds)

    def poll(self) -> int | None:
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            fd = os.pidfd_open(self.pid)
            ready = select.select([fd], [], [], timeout)[0]
            os.close(fd)
            if not ready:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(number: int, arguments: list[str], output: int, keep: tuple[int, ...]) -> None:
    code = 1
    try:
        for each in _SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(each, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        low = 3
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)
        process.subprocess = subprocess  # type: ignore[attr-defined]  # producers are programs
        parent.follow_parent(int(arguments[0]))
        ForkedWorker.prepare(number)
        importlib.import_module(arguments[1]).main(arguments[2:])
        code = 0
    except BaseException:  # noqa: BLE001  the process border
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def _popen(arguments: list[str], **options: Any) -> Any:
    is_worker = "consumers.workers.child" in arguments
    return (ForkedWorker if is_worker else subprocess.Popen)(arguments, **options)


def install(prepare: Callable[[int], object] = lambda _: None) -> None:
    """Makes this process fork its workers."""
    assert "torch" in sys.modules, "this process has imported nothing that a fork would save"
    ForkedWorker.prepare = staticmethod(prepare)
    names = {"Popen": _popen, "DEVNULL": subprocess.DEVNULL}
    names["TimeoutExpired"] = subprocess.TimeoutExpired
    process.subprocess = types.SimpleNamespace(**names)  # type: ignore[assignment,attr-defined]
