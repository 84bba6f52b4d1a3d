"""How much memory this process can still have."""

from __future__ import annotations

import os
from pathlib import Path

from featurestore.control_groups import memory_room


def available_bytes() -> int:
    """Bytes of memory that can still be had: of the machine, and of this process's cgroups."""
    room = memory_room()
    return _meminfo_available() if room is None else min(_meminfo_available(), room)


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
