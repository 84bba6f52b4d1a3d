"""Memory, CPUs and processes that this process may use, limited by the machine and control groups.

A limit applies to all groups below it, and schedulers set limits above the group that a process
belongs to: each group up to the root counts. Both versions of control groups may be mounted.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

_PROC = Path("/proc/self")
# Escaped spaces and backslashes in a name.
_OCTAL = re.compile(r"\\([0-7]{3})")
# Names of a group's memory limit, of its memory use, and of the statistic that counts cached files,
# which the kernel drops when memory is needed.
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def usable_cpus(proc: Path = _PROC) -> int:
    """CPUs that this process may use by its affinity and by the quotas of its groups, rounded up.

    Three threads use a quota of 2.5 CPUs completely; two would not.
    """
    quotas = [quota for each in _groups("cpu", proc) if (quota := _cpu_quota(*each)) is not None]
    return min([len(os.sched_getaffinity(0)), *(max(1, math.ceil(quota)) for quota in quotas)])


def memory_room(proc: Path = _PROC) -> int | None:
    """Bytes of memory available under the tightest limit, or None without a limit."""
    rooms = []
    for version, folder in _groups("memory", proc):
        limit, used, cached = _MEMORY[version]
        room = _room(folder, limit, used)
        if room is not None:
            rooms.append(max(0, room + _statistics(folder).get(cached, 0)))
    return min(rooms, default=None)


def process_room(proc: Path = _PROC) -> int | None:
    """Processes and threads that can still be started, or None without a limit."""
    rooms = [_room(folder, "pids.max", "pids.current") for _, folder in _groups("pids", proc)]
    return min((room for room in rooms if room is not None), default=None)


def _groups(controller: str, proc: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group that limits the process, its own first; see cgroups(7)."""
    try:
        mounts = (proc / "mountinfo").read_text("utf-8", "surrogateescape").split("\n")
        own = (proc / "cgroup").read_text("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    paths = dict(line.split(":", 2)[1:] for line in own if line.count(":") >= 2)
    for mount in mounts:
        with suppress(ValueError):  # a line of another form
            version, root, point = _mount(mount, controller)
            names = (n for n in paths if (controller in n.split(",") if version == 1 else not n))
            for name in names:
                folder = PurePosixPath("/")
                # In a container, the mount may begin below the root of the control groups.
                if PurePosixPath(paths[name]).is_relative_to(root):
                    folder /= PurePosixPath(paths[name]).relative_to(root)
                for each in (folder, *folder.parents):
                    yield version, Path(point) / each.relative_to("/")


def _mount(line: str, controller: str) -> tuple[int, str, str]:
    """Version of control groups, root and mount point in a line of mountinfo, see proc(5).

    Raises:
        ValueError: the line mounts no control groups, or none with this controller.
    """
    where, _, what = line.partition(" - ")
    kind, _, options = what.split(" ", 2)
    if kind != "cgroup2" and (kind != "cgroup" or controller not in options.split(",")):
        raise ValueError("not of control groups")
    root, point = (_OCTAL.sub(lambda m: chr(int(m[1], 8)), w) for w in where.split(" ")[3:5])
    return 2 if kind == "cgroup2" else 1, root, point


def _room(folder: Path, limit: str, used: str) -> int | None:
    """The remainder under a limit, or None without a limit."""
    try:
        most = (folder / limit).read_text("ascii").strip()
        return None if most == "max" else int(most) - int((folder / used).read_text("ascii"))
    except (OSError, ValueError):  # the root has no such files
        return None


def _cpu_quota(version: int, folder: Path) -> float | None:
    """CPUs that the group may use on average, or None without a limit."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text("ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text("ascii").strip()
                for name in ("quota", "period")
            )
        # No limit is written as "max" in version 2, and as -1 in version 1.
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (ArithmeticError, OSError, ValueError):  # the root has no such files
        return None


def _statistics(folder: Path) -> dict[str, int]:
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}
    except (OSError, ValueError):
        return {}


def available_bytes() -> int:
    """Bytes of memory available on this machine and under the limits of this process's groups.

    On macOS, which does not report them, the machine's whole memory.
    """
    room = memory_room()
    return _machine_available() if room is None else min(_machine_available(), room)


def _machine_available() -> int:
    if sys.platform == "win32":
        return _windows_available()
    with suppress(OSError):  # only Linux has the file
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _windows_available() -> int:
    """The field ``ullAvailPhys`` of a MEMORYSTATUSEX."""
    status = (ctypes.c_uint64 * 8)(64)  # its size in bytes is the first field
    windll: Any = ctypes.windll  # type: ignore[attr-defined]
    windll.kernel32.GlobalMemoryStatusEx(status)
    return int(status[2])
