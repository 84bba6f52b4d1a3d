"""Whether this machine has what a build needs: memory, disk, open files and processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consumers.config import CompleteConfig
from consumers.plan import Plan, default_workers
from featurestore.storage.space import free_bytes
from featurestore.system import limits
from featurestore.system.limits import available_bytes
from manyviews.operations.check.findings import Group, human_bytes
from manyviews.operations.check.models import FoundModel, batch_bytes

# Of a build besides its producers: the store, the lock, the log, libraries and CUDA.
_OTHER_FILES = 64
_FILES_PER_WORKER = 3
# Beside them torch keeps two sets of threads, of as many as there are CPUs.
_OTHER_THREADS = 16
# A producer that has imported its libraries and decoded a few posters.
_WORKER_BYTES = 60 << 20


@dataclass(frozen=True, slots=True)
class Free:
    """What can be had, asked for before anything is loaded.

    Attributes:
        memory: bytes of memory, of the machine or its control group.
        device: bytes of the GPU's memory, or None on a CPU.
    """

    memory: int
    device: int | None

    @classmethod
    def now(cls, device: str) -> Free:
        """Asks the machine and the device, as ``resolve_device`` returns it."""
        free = None
        if device.startswith("cuda"):
            import torch

            free = int(torch.cuda.mem_get_info(device)[0])
        return cls(available_bytes(), free)

    def peak(self, plan: Plan) -> int | None:
        """The most bytes of the GPU's memory that were in use until now; None on a CPU."""
        if self.device is None:
            return None
        import torch

        device = next(iter(plan.backbones.values())).device
        return int(torch.cuda.max_memory_reserved(device))


@dataclass(frozen=True, slots=True)
class Need:
    """What a build takes, in bytes; estimates but for the queue.

    Attributes:
        weights: of all backbones, on the device.
        batches: on the device, beside the weights.
        host: buffers of batches on the host.
        queue: the slots between producers and backbones.
        workers: producer processes.
        threads: batches that are computed side by side.
    """

    weights: int
    batches: int
    host: int
    queue: int
    workers: int
    threads: int


def need_of(
    plan: Plan | None, models: Sequence[FoundModel], config: CompleteConfig, threads: int
) -> Need:
    """What a build takes; without a plan the weights and ``threads`` alone are known."""
    weights = sum(model.weight_bytes for model in models)
    if plan is None:
        workers = config.workers or default_workers()
        return Need(weights, 0, 0, 0, workers, threads)
    rows = [plan.spec.chunk * len(part) for part in plan.view_parts]
    buffers = [
        batch_bytes(
            m, plan.backbones[m.feature], plan.batch_sizes[m.feature], rows, plan.decided.threads
        )
        for m in models
    ]
    kept, working, host = zip(*buffers, strict=True)
    # What one backbone's batches worked in is left to the next; at most all threads have the
    # largest at once.
    device = sum(kept) + max(working)
    queue = plan.job.layout.slot_bytes * plan.job.slots
    return Need(weights, device, sum(host), queue, plan.workers, plan.decided.threads)


def memory_into(group: Group, need: Need, free: Free, peak: int | None) -> None:
    """Adds device memory, the queue and the memory of the machine.

    Args:
        group: what to add to.
        need: what a build takes.
        free: what could be had before anything was loaded.
        peak: the most that a trial took of a GPU's memory, or None.
    """
    device = need.weights + need.batches
    on_host = need.queue + need.host + need.workers * _WORKER_BYTES
    group.facts["memory"] = {
        "weights": need.weights,
        "batches": need.batches,
        "device_needed": device,
        "device_peak": peak,
        "device_free": free.device,
        "queue_needed": need.queue,
        "host_needed": on_host + (device if free.device is None else 0),
        "host_free": free.memory,
    }
    if free.device is not None:
        text = f"about {human_bytes(device)} of {human_bytes(free.device)} free (an estimate)"
        if peak is not None:
            text = f"{human_bytes(peak)} at most in the trial, of {human_bytes(free.device)} free"
        advice = "Choose smaller batches with --batch-size, fewer --features, or free the GPU."
        needed = device if peak is None else peak
        _enough(group, "GPU memory", text, needed <= free.device, advice)
    else:
        on_host += device
    queue = f"{human_bytes(need.queue)} of anonymous memory; /dev/shm is not used"
    advice = "Choose fewer with --slots (at least 2), or free some memory."
    _enough(group, "queue", queue, need.queue <= free.memory, advice)
    text = f"about {human_bytes(on_host)} of {human_bytes(free.memory)} free (an estimate)"
    advice = "Use fewer --threads, --workers or --features, or a machine with more memory."
    _enough(group, "memory", text, on_host <= free.memory, advice)


def _enough(group: Group, label: str, text: str, is_so: bool, advice: str) -> None:
    if is_so:
        group.ok(label, text)
    else:
        group.error(label, text, advice)


def disk_into(
    group: Group,
    store: Path | None,
    needed: int | None,
    left: int | None,
    freed: int = 0,
    why_unknown: str = "",
) -> None:
    """Adds the disk that is still needed, next to what is free where the store will be.

    Args:
        group: what to add to.
        store: the store's folder, or None where none was named.
        needed: bytes of the complete store, or None where nobody knows.
        left: bytes of it that are still to be written, or None.
        freed: bytes that are deleted before.
        why_unknown: why nobody knows.
    """
    free = None if store is None else free_bytes(store)
    committed = None if needed is None or left is None else max(0, needed - left)
    group.facts["disk"] = {"needed": needed, "committed": committed, "left": left, "free": free}
    if left is None:
        group.warn("disk", "unknown before the models are loaded", why_unknown)
        return
    text = human_bytes(left)
    if committed:
        text += f" more ({human_bytes(committed)} are there)"
    if free is None:
        unnamed = "--store tells whether they are free"
        group.ok("disk", f"{text}; {'its file system does not say' if store else unnamed}")
        return
    advice = "Free some space, or choose another --store."
    also = f", and {human_bytes(freed)} in what would be deleted" if freed else ""
    text += f" of {human_bytes(free)} free{also}"
    _enough(group, "disk", text, left <= free + freed, advice)


def limits_into(group: Group, workers: int, threads: int) -> None:
    """Adds the limits on open files and processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _FILES_PER_WORKER * workers + _OTHER_FILES
    processes = workers + threads + 2 * (os.cpu_count() or 1) + _OTHER_THREADS
    room = process_room()
    group.facts["limits"] = {
        "open_files_needed": files,
        "open_files": None if soft == resource.RLIM_INFINITY else soft,
        "processes_needed": processes,
        "processes_free": room,
    }
    enough = soft == resource.RLIM_INFINITY or files <= soft
    text = f"about {files:,} of {'any number' if soft == resource.RLIM_INFINITY else f'{soft:,}'}"
    advice = f"Raise it with `ulimit -n {hard if hard > 0 else files}`, or use fewer --workers."
    _enough(group, "open files", text, enough, advice)
    text = f"about {processes:,} of {'any number' if room is None else f'{room:,} more'}"
    advice = "Use fewer --workers, or raise `ulimit -u` or the container's limit on processes."
    _enough(group, "processes", text, room is None or processes <= room, advice)


def process_room() -> int | None:
    """Processes and threads that can still be started, or None where nothing limits them."""
    rooms = [room for room in (_user_room(), limits.process_room()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _user_room() -> int | None:
    """Under ``ulimit -u``, which counts all threads of the user and does not bind root."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return None
    used = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid():
                used += len(list((folder / "task").iterdir()))
        except OSError:
            continue  # it has ended
    return soft - used
