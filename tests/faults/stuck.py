"""A file system that does not answer, as a hard NFS mount whose server is gone.

The kernel hands each ``open`` to the process below, which answers all but those of some names. Who
waits for such an answer is in uninterruptible sleep (state D): SIGKILL ends it once the mount is
released, and not before. Run as a script it serves a flat folder, until standard input ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS = 1, 2, 3, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 18, 25, 26, 27, 28, 29
_INTERRUPT, _BATCH_FORGET = 36, 42
_MNT_DETACH = 2
_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, request, node, uid, gid, pid, extensions
_OUT = struct.Struct("<IiQ")
_ROOT = 1


class Folder:
    """Answers requests about one flat folder."""

    def __init__(self, device: int, folder: Path, stuck: set[str]) -> None:
        self._device = device
        self._stuck = stuck
        self._paths = {_ROOT: folder}
        self._paths |= dict(enumerate(sorted(folder.iterdir()), _ROOT + 1))
        self._nodes = {path.name: node for node, path in self._paths.items()}

    def answer(self, data: bytes) -> None:
        _, opcode, request, node, *_ = _IN.unpack_from(data)
        body = data[_IN.size :]
        if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            return  # the request expects no answer
        if opcode == _OPEN and self._paths[node].name in self._stuck:
            print(self._paths[node].name, flush=True)
            return  # the request is never answered
        try:
            reply, error = self._reply(opcode, node, body), 0
        except OSError as e:
            reply, error = b"", -(e.errno or errno.EIO)
        os.write(self._device, _OUT.pack(_OUT.size + len(reply), error, request) + reply)

    def _reply(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == _INIT:
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 1 << 16, 1, *[0] * 10)
        if opcode == _LOOKUP:
            found = self._nodes.get(body.rstrip(b"\0").decode())
            if found is None:
                raise OSError(errno.ENOENT, "absent")
            return struct.pack("<QQQQII", found, 0, 0, 0, 0, 0) + self._attributes(found)
        if opcode == _GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode in (_OPEN, _OPENDIR):
            return struct.pack("<QIi", node, 0, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self._paths[node].read_bytes()[offset : offset + size]
        if opcode == _READDIR:
            return self._entries(*struct.unpack_from("<QI", body, 8))
        if opcode == _STATFS:
            return struct.pack("<QQQQQIIII6I", 1, 1, 1, 1, 1, 512, 255, 512, *[0] * 7)
        if opcode in (_RELEASE, _RELEASEDIR, _FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "not needed")

    def _attributes(self, node: int) -> bytes:
        s = self._paths[node].stat()
        times = [int(s.st_atime), int(s.st_mtime), int(s.st_ctime)]
        parts = [s.st_mtime_ns % 10**9] * 3
        who = [s.st_mode, 1, os.getuid(), os.getgid(), 0, 4096, 0]
        return struct.pack("<QQQQQQIIIIIIIIII", node, s.st_size, 1, *times, *parts, *who)

    def _entries(self, offset: int, size: int) -> bytes:
        found = b""
        for number, (name, node) in enumerate(self._nodes.items()):
            if node == _ROOT or number < offset:
                continue
            encoded = name.encode()
            entry = struct.pack("<QQII", node, number + 1, len(encoded), 8) + encoded
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found


def serve(folder: Path, mount: Path, stuck: set[str]) -> None:
    """Mounts, serves until standard input ends, and releases all waiting processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    place = os.fsencode(mount)
    if libc.mount(b"stuck", place, b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        print("mounted", flush=True)
        served = Folder(device, folder, stuck)
        while True:
            ready = select.select([device, 0], [], [])[0]
            if 0 in ready and not os.read(0, 100):
                return
            if device in ready:
                served.answer(os.read(device, 1 << 17))
    finally:
        libc.umount2(place, _MNT_DETACH)


class Mount:
    """A folder in which opening some files blocks and cannot be interrupted.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path, server: subprocess.Popen[str]) -> None:
        self.path = path
        self._server = server

    def wait_for_one(self) -> str:
        """Waits until another process is stuck; returns the file's name."""
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def release(self) -> None:
        """Ends the file system: waiting processes get an error, or die of a pending signal."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


@contextmanager
def mounted(folder: Path, mount: Path, stuck: list[str]) -> Iterator[Mount]:
    """Serves ``folder`` at ``mount``; skips the test where that is not allowed."""
    mount.mkdir()
    server = subprocess.Popen(
        [sys.executable, __file__, folder, mount, *stuck],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stderr is not None
    with server:
        if server.stdout.readline() != "mounted\n":
            pytest.skip(f"no file system may be mounted here: {server.stderr.read()[-200:]}")
        found = Mount(mount, server)
        try:
            yield found
        finally:
            found.release()


def state(pid: int) -> str:
    """A process's state as ``ps`` shows it, for example D; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:]))
