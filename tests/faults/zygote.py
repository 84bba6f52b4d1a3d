"""A process that has imported everything, and forks one child per run: 20 ms instead of 3 s.

It reads one JSON request a line: ``start`` forks a child that does a task's steps, ``wait`` waits
for its end. It is the reaper of whatever its children leave behind, so that a producer that
outlives its build is seen, whatever ended the build.

The backbones of the child are fake and exact: integers, cast to float32 at the end. The product has
no back door for that; they are patched into the registry here.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zarr  # noqa: F401  for the children

import consumers.build
import consumers.decisions
import consumers.main_loop
from consumers.backbones import registry
from consumers.backbones.config import BackboneConfig
from consumers.config import BuildConfig
from consumers.progress import RunLog
from consumers.workers.share import Share
from featurestore.errors import ManyViewsError
from featurestore.imdb.materialize import materialize
from featurestore.storage import space
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock
from featurestore.system import durable, locks
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from manyviews import main as program
from producers import process
from producers.parent import follow_parent
from producers.recipes.images.presets import image_recipe
from producers.recipes.texts.presets import text_recipe
from producers.recipes.texts.tokens import TextSpec
from producers.sources.collection import CollectionConfig
from tests import warm
from tests.conftest import tree_digest

_SUBREAPER = 36
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_LEFTOVERS_S = 5.0


class FakeText:
    """A text backbone whose features are an exact function of each row's ids."""

    def __init__(
        self, feature: str, model: str, device: str, dtype: str, tokenizer: str, dim: int
    ) -> None:
        self.feature = feature
        self.model = model
        # The last part of the name stands for the weights, the rest for where they lie.
        self.fingerprint = hashlib.sha256(Path(model).name.encode()).hexdigest()
        self.dim = dim
        self.device = torch.device(device)
        self.dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self.text = TextSpec(tokenizer_json=tokenizer, max_length=24)
        self.offset = 0.0  # of all features, if the machine computes wrong numbers

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(1, ids.shape[1] + 1)
        row = ((ids + 1) * mask * (places * places + 17)).sum(1, keepdim=True)  # [B, 1]
        dims = torch.arange(1, self.dim + 1)  # [D]
        mixed = (row * (2 * dims + 1) + dims * 7919) % 65521
        return (mixed - 32760).float() / 256 + self.offset


class ForkedProducer:
    """Replaces ``subprocess.Popen``: forks a process instead of starting an interpreter."""

    def __init__(
        self, arguments: list[str], *, stderr: Any, pass_fds: tuple[int, ...], **_: Any
    ) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                script = arguments.index("-P") + 1
                _become_producer(arguments[script + 1 :], stderr.fileno(), pass_fds)
            finally:
                os._exit(1)

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            fd = os.pidfd_open(self.pid)
            ready = select.select([fd], [], [], timeout)[0]
            os.close(fd)
            if not ready:
                raise subprocess.TimeoutExpired("producer", timeout or 0.0)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _become_producer(arguments: list[str], stderr: int, keep: tuple[int, ...]) -> None:
    code = 1
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 4096)
    durable.hook = durable._pass
    parent, module, *numbers = arguments
    try:
        follow_parent(int(parent))
        importlib.import_module(module).main(numbers)
        code = 0
    except BaseException:  # noqa: BLE001  the process border
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


class Shared:
    """Data that must survive a killed child: its progress, and the injected faults."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def operations(self) -> int:
        [value] = struct.unpack_from("q", self._map, 0)
        return int(value)

    @operations.setter
    def operations(self, value: int) -> None:
        struct.pack_into("q", self._map, 0, value)

    @property
    def fired(self) -> int:
        [value] = struct.unpack_from("q", self._map, 8)
        return int(value)

    def fire(self, operation: str, path: Path) -> None:
        if not self.fired:
            where = f"{operation} {path}".encode("utf-8", "replace")[:1000]
            self._map[16 : 16 + len(where)] = where
        struct.pack_into("q", self._map, 8, self.fired + 1)

    @property
    def where(self) -> str:
        return self._map[16:1100].rstrip(b"\0").decode("utf-8", "replace")


class Fault:
    """Injects a fault into the n-th operation, and into all later ones if it is sticky.

    A kill in the middle of a write leaves the first half of it in the file; a process that
    ``stops`` is stopped at that moment, and killed once it is continued. An action may also be the
    names of signals, joined by ``+``: this process gets them, and the operation continues.
    """

    def __init__(self, shared: Shared, plan: dict[str, Any]) -> None:
        self._shared = shared
        self._n: int = plan["n"]
        self._action: str = plan["action"]
        self._sticky: bool = plan.get("sticky", False)
        self._only: list[str] = plan.get("only", [])
        self._torn: bool = plan.get("torn", False)
        self._stops: bool = plan.get("stops", False)
        self._count = 0
        self._dying = False

    def __call__(self, operation: str, path: Path, size: int) -> int:
        self._shared.operations += 1
        if self._dying:
            self._kill(operation, path)
        if self._only and operation not in self._only:
            return size
        self._count += 1
        if self._count < self._n or (self._count > self._n and not self._sticky):
            return size
        if self._action == "kill":
            if operation == "write" and size > 1:
                self._dying = True
                return size // 2
            self._kill(operation, path)
        self._shared.fire(operation, path)
        if self._torn:  # half of this write is made, and the next one fails
            self._torn, self._n = False, self._n + 1
            return size // 2
        if self._action == "short":
            return max(1, size // 2)
        if self._action.startswith("SIG"):
            for name in self._action.split("+"):
                _raise_signal(getattr(signal, name))
            return size
        number = getattr(errno, self._action)
        raise OSError(number, os.strerror(number), str(path))

    def _kill(self, operation: str, path: Path) -> None:
        self._shared.fire(operation, path)
        if self._stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)


def _raise_signal(number: int) -> None:
    """Sends this process a signal; returns when the main thread has handled it.

    Its handlers run in the main thread. In another thread the next operations would be made
    before they do, and of several signals any may come first.
    """
    ignored = signal.getsignal(number) is signal.SIG_IGN
    if ignored or threading.current_thread() is threading.main_thread():
        os.kill(os.getpid(), number)
        return
    handled = threading.Event()

    def report(_: object) -> int:
        handled.set()
        return 0

    callback = _PENDING_CALL(report)
    _callbacks.append(callback)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the main thread must not run between these two
    os.kill(os.getpid(), number)
    ctypes.pythonapi.Py_AddPendingCall(callback, None)  # run after the handlers
    sys.setswitchinterval(interval)
    handled.wait(1)


_PENDING_CALL = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_callbacks: list[Any] = []  # the interpreter keeps only their addresses


class Recorder:
    """Writes every operation to a log, with the content of files as it is after each write."""

    def __init__(self, shared: Shared, log: Path) -> None:
        self._shared = shared
        self._log = log.open("wb")
        self._operations: list[dict[str, Any]] = []

    def __call__(self, operation: str, path: Path, size: int) -> int:
        self._shared.operations += 1
        self.settle()
        entry: dict[str, Any] = {"op": operation, "path": str(path), "size": size}
        if path.is_dir():
            entry["entries"] = sorted(p.name for p in path.iterdir())
        self._operations.append(entry)
        return size

    def settle(self) -> None:
        """Adds to the last write what its file holds now."""
        last = self._operations[-1] if self._operations else {"op": ""}
        if last["op"] == "write" and "content" not in last:
            last["content"] = base64.b64encode(Path(last["path"]).read_bytes()).decode()

    def close(self) -> None:
        self.settle()
        self._log.write(json.dumps(self._operations).encode())
        self._log.close()


def _config(values: dict[str, Any]) -> BuildConfig:
    typed: dict[str, Any] = {
        name: Path(values[name])
        for name in ("data_dir", "data", "store")
        if values.get(name) is not None
    }
    if values.get("collection") is not None:
        table: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["collection"].items()
        }
        typed["collection"] = CollectionConfig(**table)
    if values.get("worker") is not None:
        typed["worker"] = Share.parse(values["worker"])
    for modality, parse in (("image", image_recipe), ("text", text_recipe)):
        if f"{modality}_recipe" in values:
            typed[f"{modality}_recipe"] = parse(values[f"{modality}_recipe"])
    typed["features"] = values["features"] and tuple(values["features"])
    tables = values.get("backbones", {})
    typed["backbones"] = {name: BackboneConfig(**table) for name, table in tables.items()}
    return BuildConfig(**{**values, **typed})


def _build(values: dict[str, Any]) -> dict[str, Any]:
    config = _config(values)
    log = RunLog(config.store / "records/runs")
    try:
        report = consumers.build.build(config, [log])
    finally:
        log.close()
    return {"built": report.built, "replaced": dict(report.replaced), "bad": len(report.bad)}


def _command(arguments: list[str]) -> dict[str, Any]:
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = program.run_command(arguments)
    return {"code": code, "stderr": said.getvalue(), "stdout": printed.getvalue()}


def _verify(store: str) -> list[str]:
    return [str(f) for f in verify(Path(store)).findings]


def _repair(store: str) -> list[int]:
    lock = take_lock(Path(store))
    try:
        found = verify(Path(store))
        return repair(Path(store), found) if found.findings else []
    finally:
        lock.release()


def _materialize(paths: list[str]) -> list[str]:
    return list(materialize(FeatureStore(paths[0]), Path(paths[1])).files)


def _partials(folder: str) -> list[str]:
    return sorted(str(p) for p in Path(folder).rglob("*" + durable.PARTIAL))


def _lock_free(store: str) -> bool:
    return locks.lock_holder(Path(store) / "records/runs/lock") is None


def _fill(arguments: list[Any]) -> int:
    """Fills the file system of a folder until so many bytes are left; returns what it took."""
    folder, left = Path(arguments[0]), int(arguments[1])
    size = 0
    with (folder / "filling").open("ab", buffering=0) as file:
        for block in (65536, 4096, 1):
            try:
                while True:
                    size += file.write(bytes(block))
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
        file.truncate(size - left)
    return size - left


def _become(ids: list[int]) -> None:
    """Another user of a group; all that is imported must be by now."""
    uid, gid = ids
    "".encode("utf-8-sig")  # producers read synopses in it
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


_STEPS: dict[str, Callable[[Any], Any]] = {
    "become": _become,
    "build": _build,
    "command": _command,
    "verify": _verify,
    "repair": _repair,
    "materialize": _materialize,
    "digest": lambda folder: tree_digest(Path(folder)),
    "partials": _partials,
    "lock_free": _lock_free,
    "fill": _fill,
    "remove": lambda path: Path(path).unlink(),
    "erase": lambda folder: shutil.rmtree(folder, ignore_errors=True),
    "device": lambda path: Path(path).stat().st_dev,
    "list": lambda folder: sorted(p.name for p in Path(folder).iterdir()),
}


def _limit(task: dict[str, Any]) -> None:
    for name, value in task.get("limits", {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if "FSIZE" in task.get("limits", {}):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
    if interval := task.get("storm_s"):
        shared = _shared

        def count(_number: int, _frame: object) -> None:
            shared.fire("signal", Path("SIGALRM"))

        signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, interval, interval)


def _surround(task: dict[str, Any]) -> None:
    """Applies the restrictions of a task's file system to this process."""
    if no_lock := task.get("flock"):
        _replace(fcntl, "flock", lambda *_: _refuse(no_lock))
    if no_sync := task.get("folder_sync"):
        honest = os.fsync
        _replace(os, "fsync", lambda fd: _refuse(no_sync) if _is_folder(fd) else honest(fd))
    if task.get("unforeseen"):  # what was free is taken by another program meanwhile
        for module in (space, consumers.build):
            _replace(module, "require_space", lambda *_: None)
    if "umask" in task:
        os.umask(task["umask"])
    if link := task.get("link"):
        _replace(os, "link", functools.partial(_linked, os.link, link))
    if host := task.get("host"):
        _replace(socket, "gethostname", lambda: host)
    if kind := task.get("device_kind"):
        _replace(registry, "device_kind", lambda _: kind)
    if versions := task.get("versions"):
        installed = vars(consumers.decisions)["version"]
        _replace(consumers.decisions, "version", lambda n: versions.get(n) or installed(n))


def _replace(module: types.ModuleType, name: str, new: Any) -> None:
    """Replaces a name of a module until this process ends."""
    setattr(module, name, new)


def _refuse(name: str) -> None:
    raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


def _linked(honest: Callable[..., None], error: str, source: str, target: str) -> None:
    """A hard link that the file system refuses, or that is made and then reported as existing."""
    if error == "EEXIST":
        honest(source, target)
    _refuse(error)


def _is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _run(task: dict[str, Any]) -> dict[str, Any]:
    """Does the steps of a task in this process."""
    tokenizer = Path(task["tokenizer"]).read_text("utf-8")
    dims = task["dims"]

    def load(feature: str, model: str, device: str, dtype: str) -> FakeText:
        made = FakeText(feature, model, device, dtype, tokenizer, dims[feature])
        made.offset = task.get("offset", 0.0)
        return made

    _replace(registry, "load", load)
    if task.get("forked", True):
        _replace(os, "fsync", os.fstat)  # half of the time, and no matter to a process that dies
        used = types.SimpleNamespace(
            Popen=ForkedProducer,
            DEVNULL=subprocess.DEVNULL,
            TimeoutExpired=subprocess.TimeoutExpired,
        )
        _replace(process, "subprocess", used)
    recorder = None
    if fault := task.get("fault"):
        durable.hook = Fault(_shared, fault)
    elif log := task.get("record"):
        durable.hook = recorder = Recorder(_shared, Path(log))
    _limit(task)
    _surround(task)
    values: list[Any] = []
    result: dict[str, Any] = {"kind": "done", "values": values}
    try:
        for name, argument in task["steps"]:
            values.append(_STEPS[name](argument))
    except ManyViewsError as e:
        result |= {
            "kind": "error",
            "type": type(e).__name__,
            "classes": [c.__name__ for c in type(e).__mro__],
            "message": str(e)[:4000],
            "exit_code": e.exit_code,
            "path": str(getattr(e, "path", "")),
            "bytes": getattr(e, "bytes", None),
        }
    if task.get("storm_s"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    if recorder is not None:
        recorder.close()
    return result


def _child(task: dict[str, Any], answer: int) -> None:
    if "group" in task:
        os.setpgid(0, task["group"])
    try:
        result = _run(task)
    except BaseException:  # noqa: BLE001  the process border
        result = {"kind": "defect", "message": traceback.format_exc()[-8000:], "values": []}
    data = memoryview(json.dumps(result).encode("ascii"))
    while data:
        data = data[os.write(answer, data) :]
    os._exit(0)


class Task(NamedTuple):
    """A child that does a task.

    Attributes:
        answer: pipe that its result is read from.
        process: descriptor of the process.
        shared: its progress, and the faults that were injected.
    """

    answer: int
    process: int
    shared: Shared


# The children that have not been waited for, and the exit codes of those that were reaped.
_tasks: dict[int, Task] = {}
_codes: dict[int, int] = {}


def _wait(pid: int, timeout_s: float) -> dict[str, Any]:
    answer, process, shared = _tasks[pid]
    deadline = time.monotonic() + timeout_s
    data, open_fds, hung = b"", {process, answer}, False
    while process in open_fds:
        left = deadline - time.monotonic()
        if left <= 0 and not hung:
            hung = True
            os.kill(pid, signal.SIGKILL)
        ready = select.select(list(open_fds), [], [], max(left, 1.0))[0]
        if answer in ready:
            part = os.read(answer, 1 << 20)
            data += part
            if not part:
                open_fds.discard(answer)
        elif process in ready:
            open_fds.discard(process)
    os.close(process)
    while answer in open_fds and select.select([answer], [], [], 0)[0]:
        part = os.read(answer, 1 << 20)
        data += part
        if not part:
            break
    os.close(answer)
    while pid not in _codes:
        _reap(os.WNOHANG)
    code = _codes.pop(pid)
    del _tasks[pid]
    result = json.loads(data) if data and code == 0 else {"kind": "killed", "values": []}
    if hung:
        result = {"kind": "hung", "values": []}
    return {
        **result,
        "code": code,
        "operations": shared.operations,
        "fired": shared.fired,
        "where": shared.where,
        "leftovers": _leftovers(),
    }


def _reap(options: int) -> bool:
    """Reaps one process, if one has ended; whether there was one. Keeps the code of a task's."""
    pid, status = os.waitpid(-1, options)
    if pid in _tasks:
        _codes[pid] = os.waitstatus_to_exitcode(status)
    return pid != 0


def _leftovers() -> list[str]:
    """Processes of the run that are alive five seconds after its end; they are ended then.

    Those of other tasks that still run are children of their own parents.
    """
    deadline = time.monotonic() + _LEFTOVERS_S
    while True:
        try:
            if _reap(os.WNOHANG):
                continue
        except ChildProcessError:
            return []
        if _tasks and not _orphans():
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    found = []
    for pid in _orphans():
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
            os.kill(pid, signal.SIGKILL)
    while _orphans():
        _reap(0)
    return found or ["a process that ended while it was listed"]


def _orphans() -> list[int]:
    """The children of this process that are not tasks."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and int(status.parent.name) not in _tasks:
                found.append(int(status.parent.name))
    return found


_shared = Shared()


def _mount(commands: str) -> None:
    """Runs shell commands as root of a user and a mount namespace of this process."""
    ids = {"uid_map": os.getuid(), "gid_map": os.getgid()}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    for file, number in ids.items():
        Path("/proc/self", file).write_text(f"0 {number} 1")
    for command in ("mount --make-rprivate /", commands):
        subprocess.run(["sh", "-c", command], check=True)


def main(mounts: str) -> None:
    """Serves requests until standard input ends."""
    global _shared
    if mounts:
        _mount(mounts)
    torch.set_num_threads(1)
    # A fifth of a child's time, if each read the metadata of all packages anew.
    version = functools.cache(importlib.metadata.version)
    _replace(consumers.decisions, "version", version)
    for name in consumers.decisions._VERSIONED:
        version(name)
    warm.prepare_forks()
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # whatever is printed by accident is no reply
    replies.write(b'{"ready": true}\n')
    replies.flush()
    for line in requests:
        request = json.loads(line)
        if request["do"] == "start":
            _shared = Shared()
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _child(request["task"], write)
            os.close(write)
            if "group" in request["task"]:  # the caller may end the group at once
                os.setpgid(pid, request["task"]["group"])
            _tasks[pid] = Task(read, os.pidfd_open(pid), _shared)
            reply: dict[str, Any] = {"pid": pid}
        else:
            pid = request["pid"]
            reply = _wait(pid, request["timeout_s"])
        replies.write(json.dumps(reply).encode("ascii") + b"\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
