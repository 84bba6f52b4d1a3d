"""Run Python programs in processes that are forked from one with all libraries imported.

An interpreter that imports torch and transformers takes 5 s of a core before the first line of the
program runs; a fork of a process that has imported them takes 20 ms. The forked process has its own
arguments, environment, folder, session and standard streams, runs ``sitecustomize`` from its
``PYTHONPATH``, and exits as the interpreter does. Variables that libraries read on import cannot
have another value: that is refused, and such a test must start an interpreter.

    with warm.Popen([sys.executable, "cli.py", "status", ...], text=True) as process:
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from featurestore.system.torchvision_ops import ensure_importable

ROOT = Path(__file__).resolve().parent.parent

# Imported before the first fork: the project's packages, and the libraries that they import late.
IMPORTED = (
    *("pytest", "hypothesis", "rich.progress", "torch", "zarr"),
    *(
        "transformers",
        "sentence_transformers",
        "manyviews.main",
        "consumers.build",
        "consumers.backbones.registry",
    ),
    *("manyviews.operations.check.check", "manyviews.operations.watch.watch"),
)
# Libraries read these variables on import: a fork has the values of the first process.
_READ_AT_IMPORT = ("CUDA", "HF_", "LC_", "LD_", "MKL", "OMP", "PYTHON", "TORCH", "TRANSFORMERS")
# Except these: the first is set for each program, the second is read when a GPU is used, and torch
# sets the last in its own process.
_FREE = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR")
_ENVIRONMENT = dict(os.environ)
# The size of a huge page in bytes, and the advice of madvise(2) that makes pages of it.
_HUGE, _COLLAPSE = 1 << 21, 25

_POPEN: Any = subprocess.Popen  # whose private methods are in no stub


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen`` of ``[sys.executable, SCRIPT | -c CODE | -m MODULE, ...]``.

    Attributes:
        imported: modules of the process that is forked; a subclass may need fewer. The time of a
            fork grows with the memory of its parent.
    """

    imported: tuple[str, ...] = IMPORTED

    def _execute_child(self, *passed: Any) -> None:
        given = inspect.signature(_POPEN._execute_child).bind(self, *passed).arguments
        arguments = [os.fspath(a) for a in given["args"]]
        environment = dict(os.environ if given["env"] is None else given["env"])
        _check(arguments, environment, given)
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        request = {
            "arguments": arguments[1:],
            "environment": environment,
            "folder": os.fspath(given["cwd"] or Path.cwd()),
            "session": bool(given["start_new_session"]),
        }
        streams = [own if pipe == -1 else pipe for own, pipe in enumerate(pipes)]
        self.pid = _server(self.imported).start(request, streams)
        self._pidfd = os.pidfd_open(self.pid)
        self._child_created = True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        _POPEN._close_pipe_fds(self, *(given[name] for name in names))

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = _server(self.imported).code(self.pid)
            os.close(self._pidfd)
        return self.returncode


def run(
    arguments: list[Any], *, check: bool = False, timeout: float = 300.0, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Like ``subprocess.run``, with ``capture_output``."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(arguments, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def _check(arguments: list[str], environment: dict[str, str], given: dict[str, Any]) -> None:
    """Refuses programs that a fork cannot run: of another interpreter, or with other settings."""
    assert arguments[0] == sys.executable, arguments
    assert arguments[1] in ("-c", "-m") or not arguments[1].startswith("-"), arguments
    assert given["preexec_fn"] is None, "a fork runs no function of its parent"
    assert not given["shell"], "a fork runs no shell"
    for name in environment.keys() | _ENVIRONMENT.keys():
        if name.startswith(_READ_AT_IMPORT) and name not in _FREE:
            assert environment.get(name) == _ENVIRONMENT.get(name), f"{name} is read at import"


class _Server:
    """The server process that forks the others, reached through a socket."""

    def __init__(self, imported: tuple[str, ...]) -> None:
        near, far = socket.socketpair()
        self._socket = near
        self._asked = threading.Lock()
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(far.fileno()), *imported],
                cwd=ROOT,
                env=_ENVIRONMENT,
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C of the terminal goes to pytest only
            )
        assert self._receive() == "ready"
        atexit.register(self.close)

    def start(self, request: dict[str, Any], streams: list[int]) -> int:
        """Forks a process; returns its id."""
        with self._asked:
            data = json.dumps(request).encode("ascii")
            fds = array.array("i", streams)
            message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            self._socket.sendmsg([struct.pack("!I", len(data))], message)
            self._socket.sendall(data)
            return int(self._receive())

    def code(self, pid: int) -> int:
        """The exit code of a process that has ended."""
        with self._asked:
            data = json.dumps({"wait": pid}).encode("ascii")
            self._socket.sendmsg([struct.pack("!I", len(data))])
            self._socket.sendall(data)
            return int(self._receive())

    def _receive(self) -> Any:
        return json.loads(_exactly(self._socket, *struct.unpack("!I", _exactly(self._socket, 4))))

    def close(self) -> None:
        """Ends it, and whatever it started that has not ended."""
        self._socket.close()
        self._process.wait(60)


_servers: dict[tuple[int, tuple[str, ...]], _Server] = {}


def _server(imported: tuple[str, ...]) -> _Server:
    """The server of this process with these modules; a fork of this process must not use it."""
    key = os.getpid(), imported
    if key not in _servers:
        _servers[key] = _Server(imported)
    return _servers[key]


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise EOFError("the server of forks has ended")
        data += part
    return bytes(data)


# In the server ----------------------------------------------------------------------------------


def serve(stream: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Serves requests; returns in each forked process, with its request and its streams."""
    running: set[int] = set()
    _answer(stream, "ready")
    while True:
        size, passed, _, _ = socket.recv_fds(stream, 4, 3)
        if not size:
            break
        request = json.loads(_exactly(stream, *struct.unpack("!I", size)))
        if "wait" in request:
            pid = request["wait"]
            running.discard(pid)
            _answer(stream, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            stream.close()
            return request, passed
        running.add(pid)
        for fd in passed:
            os.close(fd)
        _answer(stream, pid)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def prepare_forks() -> None:
    """Makes forks of this process cheap, once it has imported everything.

    A garbage collection in a fork would copy the pages of all modules. A fork of 180 MB in small
    pages takes 36 ms of a core, and in huge pages 15 ms: they are collapsed where the kernel can.
    """
    gc.freeze()
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text("ascii", "replace").splitlines():
        addresses, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in addresses.split("-"))
            first, end = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
            if first < end:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _COLLAPSE)


def _answer(stream: socket.socket, value: Any) -> None:
    data = json.dumps(value).encode("ascii")
    stream.sendall(struct.pack("!I", len(data)) + data)


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Sets this process up as an interpreter that starts the program."""
    if request["session"]:
        os.setsid()
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _open_streams()
    arguments = request["arguments"]
    places = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    script = arguments[0]
    firsts = {"-c": "", "-m": str(Path.cwd())}
    first = firsts[script] if script in firsts else str(Path(script).resolve().parent)
    sys.path[:] = [first, *places, *_BASE]
    sys.argv[:] = [script, *arguments[2:]] if script in firsts else arguments
    for place in places:
        if (Path(place) / "sitecustomize.py").exists():
            sys.modules.pop("sitecustomize", None)
            importlib.import_module("sitecustomize")
            break


def _open_streams() -> None:
    """Opens the standard streams as the interpreter does."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        was = getattr(sys, name)
        mode, unbuffered = ("rb", False) if name == "stdin" else ("wb", was.write_through)
        binary = open(number, mode, 0 if unbuffered else -1, closefd=False)
        lines = not was.write_through and (name == "stderr" or binary.isatty())
        kinds = (was.encoding, was.errors, None, lines, unbuffered)
        opened = io.TextIOWrapper(binary, *kinds)
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)


def run_program(arguments: list[str]) -> None:
    """Runs a script, a module or code as ``__main__``."""
    kind = arguments[0]
    if kind == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(kind, run_name="__main__")


def end_after(program: Callable[[], object]) -> NoReturn:
    """Exits as the interpreter does, but does not tear down modules, which takes 1 s of a core.

    Waits for threads, calls the registered exit functions, and flushes.
    """
    code = 0
    try:
        program()
    except SystemExit as e:
        if e.code is not None and not isinstance(e.code, int):
            print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException as e:  # noqa: BLE001  the process border
        sys.excepthook(type(e), e, e.__traceback__)
        code = -signal.SIGINT if isinstance(e, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    _BASE = [place for place in sys.path if place not in ("", str(ROOT))]
    ensure_importable()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    assert threading.active_count() == 1, threading.enumerate()
    prepare_forks()
    with socket.socket(fileno=int(sys.argv[1])) as served:
        asked, given = serve(served)
    become(asked, given)
    end_after(lambda: run_program(asked["arguments"]))
