import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from featurestore.system.limits import available_bytes, memory_room, process_room, usable_cpus
from tests.conftest import ROOT

GIB = 2**30


def machine(tmp_path: Path, mounts: list[str], own: list[str], files: Mapping[str, object]) -> Path:
    """A /proc/self and control groups below ``tmp_path``; mounts name it by ``{root}``."""
    proc, root = tmp_path / "proc", tmp_path / "groups"
    proc.mkdir()
    lines = [f"{30 + i} 23 0:{i} {mount}\n" for i, mount in enumerate(mounts)]
    (proc / "mountinfo").write_text("".join(lines).replace("{root}", str(root)))
    (proc / "cgroup").write_text("".join(line + "\n" for line in own))
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return proc


V2 = "/ {root} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def test_a_scheduler_limits_the_job_above_the_task(tmp_path: Path) -> None:
    """As with SLURM, where the group of the task has the limit ``max``."""
    job = "system.slice/slurmstepd.scope/job_7"
    proc = machine(
        tmp_path,
        ["/ / rw - ext4 /dev/root rw", V2],
        [f"0::/{job}/step_0/user/task_0"],
        {
            f"{job}/step_0/user/task_0/memory.max": "max",
            f"{job}/step_0/user/task_0/memory.current": GIB,
            f"{job}/step_0/memory.max": 9 * GIB,
            f"{job}/step_0/memory.current": 2 * GIB,
            f"{job}/memory.max": 8 * GIB,
            f"{job}/memory.current": 3 * GIB,
            f"{job}/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}",
            f"{job}/pids.max": 100,
            f"{job}/pids.current": 30,
            f"{job}/step_0/pids.max": "max",
        },
    )
    assert memory_room(proc) == 8 * GIB - 3 * GIB + GIB
    assert process_room(proc) == 70


def test_version_one_and_two_at_once(tmp_path: Path) -> None:
    proc = machine(
        tmp_path,
        [
            "/ {root}/memory rw - cgroup cgroup rw,memory",
            "/ {root}/pids rw - cgroup cgroup rw,pids,misc",
            "/ {root}/unified rw - cgroup2 cgroup2 rw",
        ],
        ["8:misc,pids:/p", "4:memory:/jobs/a", "1:name=systemd:/", "0::/"],
        {
            "memory/memory.limit_in_bytes": 2**63 - 4096,
            "memory/memory.usage_in_bytes": 5 * GIB,
            "memory/jobs/a/memory.limit_in_bytes": 4 * GIB,
            "memory/jobs/a/memory.usage_in_bytes": 3 * GIB,
            "memory/jobs/a/memory.stat": "inactive_file 7\ntotal_inactive_file 4096",
            "pids/p/pids.max": 12,
            "pids/p/pids.current": 15,
        },
    )
    assert memory_room(proc) == GIB + 4096
    assert process_room(proc) == -3


@pytest.mark.parametrize(
    ("root", "own"),
    [
        ("/docker/abc", "0::/docker/abc"),
        ("/docker/abc", "0::/docker/abc/inner"),
        ("/", "0::/../../docker/abc"),
        ("/docker/abc", "0::/elsewhere: odd"),
    ],
)
def test_in_a_container_the_mount_begins_at_its_own_group(
    tmp_path: Path, root: str, own: str
) -> None:
    proc = machine(
        tmp_path,
        [f"{root} {{root}} ro - cgroup2 cgroup rw"],
        [own],
        {"memory.max": GIB, "memory.current": 1},
    )
    assert memory_room(proc) == GIB - 1


def test_odd_names_and_lines(tmp_path: Path) -> None:
    """A line that is cut short, a form feed in a name, and what the kernel writes in octal."""
    proc = machine(
        tmp_path,
        ["/ /mnt/a\x0cb rw - ext4 /dev/x rw", "/", V2.replace("{root}", r"{root}/my\040groups")],
        ["", "7", r"0::/user\x2d1.slice"],
        {
            r"my groups/user\x2d1.slice/memory.max": GIB,
            r"my groups/user\x2d1.slice/memory.current": 3,
        },
    )
    assert memory_room(proc) == GIB - 3
    root = V2.replace("/ {root}", r"/user\134x2d1.slice {root}/my\040groups/user\134x2d1.slice")
    (proc / "mountinfo").write_text("1 2 0:3 " + root.replace("{root}", str(tmp_path / "groups")))
    assert memory_room(proc) == GIB - 3


@pytest.mark.parametrize("files", [{}, {"memory.max": "max"}, {"memory.max": "", "pids.max": "x"}])
def test_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    proc = machine(tmp_path, [V2], ["0::/"], files)
    assert memory_room(proc) is None
    assert process_room(proc) is None
    assert memory_room(tmp_path / "nothing") is None


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    proc = machine(tmp_path, [V2], ["0::/a"], {"a/memory.max": 5, "a/memory.current": 9})
    assert memory_room(proc) == 0


def test_this_machine() -> None:
    """The machine's limits leave room at least for the test itself."""
    assert 0 < available_bytes() < 2**50
    room = process_room()
    assert room is None or room > 0


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 64), ("400000 100000", 4), ("250000 100000", 3), ("5000 100000", 1)],
)
def test_a_quota_bounds_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int
) -> None:
    """On a node with 64 CPUs; the tightest group counts, also one above the process's group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    files = {"jobs/a/cpu.max": "max 100000", "jobs/cpu.max": quota}
    assert usable_cpus(machine(tmp_path, [V2], ["0::/jobs/a"], files)) == cpus


def test_a_quota_of_version_one_bounds_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))
    mounts = ["/ {root}/cpu rw - cgroup cgroup rw,cpu,cpuacct"]
    files = {
        "cpu/pod/cpu.cfs_quota_us": 150000,
        "cpu/pod/cpu.cfs_period_us": 100000,
        "cpu/cpu.cfs_quota_us": -1,
        "cpu/cpu.cfs_period_us": 100000,
    }
    assert usable_cpus(machine(tmp_path, mounts, ["4:cpu,cpuacct:/pod"], files)) == 2


def test_the_affinity_bounds_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5})
    files = {"a/cpu.max": "400000 100000"}
    assert usable_cpus(machine(tmp_path, [V2], ["0::/a"], files)) == 2
    assert usable_cpus(tmp_path / "nowhere") == 2


def test_a_real_quota_bounds_the_cpus() -> None:
    """A process in a separate control group with a quota of one CPU."""
    roots = {1: Path("/sys/fs/cgroup/cpu"), 2: Path("/sys/fs/cgroup")}
    root = roots[2 if (roots[2] / "cgroup.controllers").exists() else 1]
    group = root / f"manyviews-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no control group can be made here: {e.strerror}")
    try:
        if root == roots[2]:
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
        code = (
            f"import os, pathlib; pathlib.Path({str(group / 'cgroup.procs')!r})"
            ".write_text(str(os.getpid()))\n"
            "from featurestore.system.limits import usable_cpus; print(usable_cpus())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "1"
    finally:
        group.rmdir()
