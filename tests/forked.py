"""Workers and producers that are forked from their parent, which has imported all libraries.

A worker imports torch and transformers, which takes 5 s of a core, and a producer imports NumPy and
Pillow, which takes half a second; a fork takes less than a tenth. Only the start differs: pipes,
arguments, variables, signals and what the process runs are those of a new interpreter, and
``sitecustomize`` on its ``PYTHONPATH`` is run, unless the parent has run that file.
``tests/producers/test_process.py`` starts interpreters.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from producers import parent, process, worker  # noqa: F401  the last for the children

_SIGNALS = {*range(1, 32), signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2}


class Forked:
    """Replaces ``subprocess.Popen`` for child processes of ``producers.process``."""

    workers = 0
    # Called in each worker process with its number, from 0.
    prepare: Callable[[int], object] = staticmethod(lambda _: None)

    def __init__(
        self,
        arguments: list[str],
        *,
        stderr: Any,
        pass_fds: tuple[int, ...],
        env: Mapping[str, str],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        pid, module, *numbers = arguments[arguments.index("-P") + 2 :]
        number = Forked.workers
        Forked.workers += _is_worker(module)
        with warnings.catch_warnings():
            # Newer Pythons warn about forks with threads, of whose locks the child takes none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _become(int(pid), module, numbers, number, stderr.fileno(), pass_fds, env)

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
                raise subprocess.TimeoutExpired("child", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _is_worker(module: str) -> bool:
    return module.startswith("consumers.workers")


def _become(
    pid: int,
    module: str,
    arguments: list[str],
    number: int,
    output: int,
    keep: tuple[int, ...],
    environment: Mapping[str, str],
) -> None:
    code = 1
    try:
        gc.freeze()  # otherwise a garbage collection would copy the pages of all modules
        for each in _SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(each, signal.SIG_DFL)
        for each in (signal.SIGPIPE, signal.SIGXFSZ):  # as an interpreter does
            signal.signal(each, signal.SIG_IGN)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        low = 3
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)
        for stream, name in ((1, "stdout"), (2, "stderr")):  # pytest has replaced them
            setattr(sys, name, open(stream, "w", buffering=1, closefd=False))
        os.environ.clear()
        os.environ.update(environment)
        parent.follow_parent(pid)
        if _is_worker(module):
            Forked.prepare(number)
        else:
            _customize()
        importlib.import_module(module).main(arguments)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # noqa: BLE001  the process border
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def _customize() -> None:
    """Runs ``sitecustomize`` as an interpreter does that starts with this environment."""
    places = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    for place in places:
        file = Path(place, "sitecustomize.py")
        if file.exists():
            loaded = getattr(sys.modules.get("sitecustomize"), "__file__", None)
            if loaded is None or not file.samefile(loaded):
                sys.modules.pop("sitecustomize", None)
                sys.path.insert(0, place)
                importlib.invalidate_caches()
                importlib.import_module("sitecustomize")
            return


def install(prepare: Callable[[int], object] = lambda _: None) -> None:
    """Makes this process, and the workers that it forks, fork their children.

    Args:
        prepare: called in each worker with its number, from 0.
    """
    Forked.prepare = staticmethod(prepare)
    names = {"Popen": Forked, "DEVNULL": subprocess.DEVNULL}
    names["TimeoutExpired"] = subprocess.TimeoutExpired
    process.subprocess = types.SimpleNamespace(**names)  # type: ignore[assignment,attr-defined]


@contextlib.contextmanager
def children() -> Iterator[None]:
    """Forks the children that this process starts in the block."""
    install()
    try:
        yield
    finally:
        process.subprocess = subprocess  # type: ignore[attr-defined]
