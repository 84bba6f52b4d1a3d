"""Compare the resources of this machine with the needs of a build.

The resources are memory, disk space, open files and processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consumers.backbones.registry import device_kind
from consumers.config import CompleteConfig
from consumers.plan import Plan, default_producers
from featurestore.errors import ConfigError
from featurestore.storage.space import free_bytes
from featurestore.system import limits
from featurestore.system.limits import available_bytes
from featurestore.wording import human_bytes
from manyviews.operations.check.findings import Group
from manyviews.operations.check.models import FoundModel, batch_bytes
from manyviews.operations.check.spread import Spread

# Open files of a build beside its producers': the store, the lock, the log, libraries and CUDA.
_OTHER_FILES = 64
_FILES_PER_WORKER = 3
# Threads beside the compute threads and torch's two sets of one thread per CPU.
_OTHER_THREADS = 16
# Memory of a producer that has imported its libraries and decoded a few posters.
_WORKER_BYTES = 60 << 20


@dataclass(frozen=True, slots=True)
class Free:
    """Available memory, measured before any model is loaded.

    Attributes:
        memory: available memory of the machine or its control group, in bytes.
        device: available memory of the GPU in bytes, or None on a CPU.
    """

    memory: int
    device: int | None

    @classmethod
    def now(cls, device: str) -> Free:
        """Measures the machine and ``device``, a result of ``resolve_device``."""
        free = None
        if device.startswith("cuda"):
            import torch

            free = int(torch.cuda.mem_get_info(device)[0])
        return cls(available_bytes(), free)

    def peak(self, plan: Plan) -> int | None:
        """The peak of reserved GPU memory until now in bytes; None on a CPU."""
        if self.device is None:
            return None
        import torch

        device = next(iter(plan.backbones.values())).device
        return int(torch.cuda.max_memory_reserved(device))


@dataclass(frozen=True, slots=True)
class Need:
    """The resources of a build; memory in bytes, estimated except for the queue.

    Attributes:
        weights: memory of the weights of all backbones, on the device.
        batches: memory of batches and activations, on the device.
        host: memory of the buffers of batches, on the host.
        queue: memory of the slots between producers and backbones.
        producers: number of producer processes.
        threads: number of batches that are computed in parallel.
    """

    weights: int
    batches: int
    host: int
    queue: int
    producers: int
    threads: int

    def of(self, spread: Spread) -> Need:
        """The needs of all workers of this machine, given those of a build by one process.

        Workers on the CPU divide its threads, and with them the memory of batches; those on one
        GPU do not. Device memory is that of the first GPU.
        """
        count = len(spread.devices)
        on_device = spread.devices.count(spread.devices[0])
        is_cpu = spread.devices[0] == "cpu"
        return Need(
            self.weights * on_device,
            self.batches * (1 if is_cpu else on_device),
            self.host * (1 if is_cpu else count),
            # Every worker has at least two slots more than twice its producers.
            self.queue * (self.producers + count) // (self.producers + 1),
            max(self.producers, count),
            max(self.threads, count),
        )


def need_of(
    plan: Plan | None, models: Sequence[FoundModel], config: CompleteConfig, threads: int
) -> Need:
    """The needs of a build; without a plan only weights, producers and threads are known."""
    weights = sum(model.weight_bytes for model in models)
    if plan is None:
        producers = config.producers or default_producers()
        return Need(weights, 0, 0, 0, producers, threads)
    rows = [plan.spec.chunk * len(part) for part in plan.view_parts]
    buffers = [
        batch_bytes(
            m, plan.backbones[m.feature], plan.batch_sizes[m.feature], rows, plan.decided.threads
        )
        for m in models
    ]
    kept, working, host = zip(*buffers, strict=True)
    # Backbones reuse the working memory of one another: the largest counts once, for all threads.
    device = sum(kept) + max(working)
    queue = plan.job.layout.slot_bytes * plan.job.slots
    return Need(weights, device, sum(host), queue, plan.producers, plan.decided.threads)


def device_into(group: Group, device: str) -> None:
    """Adds the device of the backbones, and its kind, which affects their numbers."""
    try:
        kind = device_kind(device)
    except ConfigError as error:
        group.failure("device", error)
        return
    group.facts["device"] = {"name": device, "kind": kind}
    _, _, what = kind.partition(": ")
    group.ok("device", f"{device}: {what}")


def memory_into(
    group: Group, need: Need, free: Free, peak: int | None, why_unknown: str = ""
) -> None:
    """Adds device memory, the queue and the memory of the machine.

    Args:
        group: the group to add to.
        need: the needs of the build.
        free: the memory that was available before any model was loaded.
        peak: the peak of GPU memory in the trial in bytes, or None.
        why_unknown: why the needs are not known, as advice to the user; ``""`` if they are.
    """
    if why_unknown:
        _unknown_memory_into(group, need, free, why_unknown)
        return
    device = need.weights + need.batches
    on_host = need.queue + need.host + need.producers * _WORKER_BYTES
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
    advice = "Use fewer --threads, --producers or --features, or a machine with more memory."
    _enough(group, "memory", text, on_host <= free.memory, advice)


def _unknown_memory_into(group: Group, need: Need, free: Free, why: str) -> None:
    """Adds the memory of a build whose models are not loaded; only too large weights are known."""
    group.facts["memory"] = {
        "weights": need.weights or None,
        "batches": None,
        "device_needed": None,
        "device_peak": None,
        "device_free": free.device,
        "queue_needed": None,
        "host_needed": None,
        "host_free": free.memory,
    }
    if free.device is not None:
        _weights_into(group, "GPU memory", need.weights, free.device, why)
    _not_known(group, "queue", why)
    _weights_into(group, "memory", 0 if free.device else need.weights, free.memory, why)


def _weights_into(group: Group, label: str, weights: int, free: int, why: str) -> None:
    if weights > free:
        text = f"more than {human_bytes(weights)}, of {human_bytes(free)} free"
        group.error(label, text, "Use fewer --features, or a larger machine.")
    else:
        _not_known(group, label, why)


def _not_known(group: Group, label: str, why: str) -> None:
    group.warn(label, f"not known: {why[:1].lower()}{why[1:]}", "")


def _enough(group: Group, label: str, text: str, is_enough: bool, advice: str) -> None:
    if is_enough:
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
    """Adds the disk space that is still needed, and the free space of the store's file system.

    Args:
        group: the group to add to.
        store: the store's folder, or None if none was named.
        needed: size of the complete store in bytes, or None if it is not known.
        left: bytes that are still to be written, or None if they are not known.
        freed: bytes that the build deletes first.
        why_unknown: why the size is not known, as advice to the user.
    """
    free = None if store is None else free_bytes(store)
    committed = None if needed is None or left is None else max(0, needed - left)
    group.facts["disk"] = {"needed": needed, "committed": committed, "left": left, "free": free}
    if left is None:
        _not_known(group, "disk", why_unknown)
        return
    text = human_bytes(left)
    if committed:
        text += f" more ({human_bytes(committed)} are committed)"
    if free is None:
        unnamed = "give --store to compare it with the free space"
        group.ok("disk", f"{text}; {'free space is unknown' if store else unnamed}")
        return
    advice = "Free some space, or choose another --store."
    also = f", and {human_bytes(freed)} that would be deleted first" if freed else ""
    text += f" of {human_bytes(free)} free{also}"
    _enough(group, "disk", text, left <= free + freed, advice)


def limits_into(group: Group, workers: int, threads: int) -> None:
    """Adds the limits on open files and processes."""
    import resource  # Windows has no such module, and no builds

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
    advice = f"Raise it with `ulimit -n {hard if hard > 0 else files}`, or use fewer --producers."
    _enough(group, "open files", text, enough, advice)
    text = f"about {processes:,} of {'any number' if room is None else f'{room:,} more'}"
    advice = "Use fewer --producers, or raise `ulimit -u` or the container's limit on processes."
    _enough(group, "processes", text, room is None or processes <= room, advice)


def process_room() -> int | None:
    """Processes and threads that can still be started; None if there is no limit."""
    rooms = [room for room in (_user_room(), limits.process_room()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _user_room() -> int | None:
    """Room under ``ulimit -u``, which counts all threads of the user and does not limit root."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return None
    used = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid():
                used += len(list((folder / "task").iterdir()))
        except OSError:
            continue  # the process has ended
    return soft - used
