"""Runs a command and observes its process tree: time, CPU, memory and number of processes.

All processes that a command starts are counted, also orphans, which this process adopts.
Memory is the proportional set size, so that pages which processes share count once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import ROOT

CORES = 2
_TICK_S = 0.05
_SAMPLE_S = 0.25  # reading the memory maps of a tree costs a few milliseconds
_GRACE_S = 3.0  # for processes to end after the one they belong to
_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Marks = Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the tree: its command line and the CPU seconds it has used."""

    pid: int
    command: str
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Blow:
    """SIGKILL in the middle of the work.

    Attributes:
        after_cpu_s: CPU seconds of the tree after the program said that it is ready; how far the
            work is, whatever else the machine does.
        victims: chooses among the tree's processes; the command's own is the first.
    """

    after_cpu_s: float
    victims: Callable[[Sequence[Process]], Sequence[Process]]


@dataclass(frozen=True, slots=True)
class Observed:
    """The result of a command.

    Attributes:
        exit_code: negative for a signal; None where the limit ended it.
        seconds: from its start to its end.
        warm_s: from the moment that it was ready, its models loaded, to the end of its work.
        start_s: before that.
        cpu_s: of the whole tree.
        warm_cpu_s: of the tree, in ``warm_s``.
        peak_bytes: the largest sum of proportional set sizes.
        output: what it said on standard output and standard error.
        struck: the processes that the blow hit.
        left: processes that outlived the command by three seconds, and were ended then.
    """

    exit_code: int | None
    seconds: float
    warm_s: float
    start_s: float
    cpu_s: float
    warm_cpu_s: float
    peak_bytes: int
    output: str
    struck: tuple[int, ...]
    left: int


@dataclass(slots=True)
class _Watch:
    """What has been seen of a tree so far."""

    cpu: dict[int, float] = field(default_factory=dict)
    history: list[tuple[float, float]] = field(default_factory=list)
    peak: int = 0

    def look(self, root: int) -> None:
        pids = tree(root)
        for pid in pids:
            with contextlib.suppress(OSError):
                self.cpu[pid] = max(self.cpu.get(pid, 0.0), cpu_of(pid))
        self.peak = max(self.peak, sum(map(_bytes_of, pids)))
        self.history.append((time.monotonic(), sum(self.cpu.values())))

    def cpu_at(self, moment: float) -> float:
        """CPU seconds used by then, between two looks in proportion."""
        before, after = self.history[0], self.history[-1]
        for point in self.history:
            if point[0] <= moment:
                before = point
            else:
                after = point
                break
        span = after[0] - before[0]
        share = min(1.0, max(0.0, (moment - before[0]) / span)) if span > 0 else 1.0
        return before[1] + share * (after[1] - before[1])


def observe(
    command: Sequence[str], marks: Marks, limit_s: float, blow: Blow | None = None
) -> Observed:
    """Runs a command from the repository's root to its end.

    Args:
        command: on two cores, with one OpenMP thread per process.
        marks: the moments that the program has noted so far, on the monotonic clock.
        limit_s: after that it hangs, and is ended.
        blow: what to do to it.
    """
    _adopt_orphans()
    used = _children_cpu()
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT
        )
        watch, struck = _follow(process, marks, start + limit_s, blow)
        end, code = time.monotonic(), process.poll()
        left = _end_all(0.0 if code is None else _GRACE_S)
        process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace")
    cpu = max(_children_cpu() - used, watch.history[-1][1])
    watch.history.append((end, cpu))
    noted = marks()
    ready, done = noted.get("ready", start), noted.get("done", end)
    return Observed(
        exit_code=code,
        seconds=end - start,
        warm_s=done - ready,
        start_s=ready - start,
        cpu_s=cpu,
        warm_cpu_s=watch.cpu_at(done) - watch.cpu_at(ready),
        peak_bytes=watch.peak,
        output=said,
        struck=struck,
        left=left,
    )


def file_marks(file: Path) -> Marks:
    """The marks that a program of ours writes to a file."""

    def marks() -> dict[str, float]:
        if not file.exists():
            return {}
        return dict(json.loads(line) for line in file.read_text("utf-8").splitlines())

    return marks


def tree(root: int) -> list[int]:
    """A process and all below it, without those that have ended."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text("ascii").split())
    return found


def cpu_of(pid: int) -> float:
    """CPU seconds of a process that lives; what its own dead children used is not in it."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _follow(
    process: subprocess.Popen[bytes], marks: Marks, limit: float, blow: Blow | None
) -> tuple[_Watch, tuple[int, ...]]:
    struck: tuple[int, ...] = ()
    watch, sampled = _Watch(), 0.0
    watch.look(process.pid)
    while process.poll() is None and time.monotonic() < limit:
        now = time.monotonic()
        if now - sampled >= _SAMPLE_S:
            watch.look(process.pid)
            sampled = now
            ready = marks().get("ready") if blow is not None and not struck else None
            if blow is not None and ready is not None:
                used = watch.history[-1][1] - watch.cpu_at(ready)
                struck = _strike(blow, process.pid) if used >= blow.after_cpu_s else ()
        time.sleep(_TICK_S)
    return watch, struck


def _strike(blow: Blow, root: int) -> tuple[int, ...]:
    living = []
    for pid in tree(root):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            living.append(Process(pid, command.decode(errors="replace").strip(), cpu_of(pid)))
    victims = blow.victims(living)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
    return tuple(victim.pid for victim in victims)


def _end_all(grace_s: float) -> int:
    """Waits for what the command started to end, kills the rest, and says how many these were."""
    limit = time.monotonic() + grace_s
    while (living := _reap()) and time.monotonic() < limit:
        time.sleep(_TICK_S)
    left = len(living)
    while living:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_TICK_S)
        living = _reap()
    return left


def _reap() -> list[int]:
    """Takes the exit codes of adopted children that have ended; returns who lives still."""
    for pid in tree(os.getpid())[1:]:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return tree(os.getpid())[1:]


def _bytes_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _adopt_orphans() -> None:
    """Makes what the command leaves behind this process's child, and keeps it to two cores."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def _environment() -> dict[str, str]:
    """This process's, with one thread each, and nothing that calls home."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",  # or it writes a token to the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
    }
