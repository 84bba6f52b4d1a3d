"""How much memory this process can still have."""

from __future__ import annotations

import os
from pathlib import Path


def available_bytes() -> int:
    """Bytes of memory that can still be had: of the machine, and of this process's cgroup."""
    candidates = [_meminfo_available()]
    candidates += [c for c in (_cgroup_free(),) if c is not None]
    return min(candidates)


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_free() -> int | None:
    """Room under the limit of the control group (version 2), or None where there is no limit."""
    try:
        own = Path("/proc/self/cgroup").read_text("utf-8").splitlines()[0].rpartition("::")[2]
        folder = Path("/sys/fs/cgroup") / own.lstrip("/")
        limit = (folder / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text("ascii"))
        # Cached files count as used, and give way to whoever needs the memory.
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError, IndexError):
        return None
