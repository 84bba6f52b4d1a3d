"""The places of a parent process: one device each, with the worker process that builds on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from consumers.config import BuildConfig
from consumers.plan import default_producers, default_slots
from consumers.stopping import relayed
from consumers.workers.share import Machine, Share
from featurestore.errors import ConfigError
from featurestore.system.limits import available_bytes, usable_cpus
from producers.process import Child

# Fewest slots with which a worker can build.
_FEWEST_SLOTS = 2


class WorkerChild(Child):
    """A worker process, which may use a GPU and threads as its parent may."""

    _NAME = "A worker process"
    _ENVIRONMENT: Mapping[str, str] = {}


@dataclass(slots=True, eq=False)
class Place:
    """One device, and the worker process that builds on it.

    Attributes:
        number: number of the place, from 0.
        device: ``cpu`` or ``cuda:N``.
        share: which of all workers it is.
        task: the fields of the configuration that are this worker's own, as plain values.
        child: the running process; None if there is none.
        restarts: how often a process was started again.
        has_ended: whether the last process ended by itself: with a report or an error.
        is_stopping: whether a stop signal was relayed to the process.
    """

    number: int
    device: str
    share: Share
    task: Mapping[str, Any]
    child: WorkerChild | None = None
    restarts: int = 0
    has_ended: bool = False
    is_stopping: bool = False

    @property
    def label(self) -> str:
        """The device and the worker, for people: ``cuda:0 (worker 0/2)``."""
        return f"{self.device} (worker {self.share})"

    @property
    def pid(self) -> int:
        """Id of the running process; 0 if there is none."""
        return 0 if self.child is None else self.child.pid

    def start(self, job: IO[bytes]) -> None:
        """Starts a process, whose configuration is the file ``job`` and this place's task.

        Raises:
            ProducerError, StorageError: it cannot be started.
        """
        self.is_stopping = False
        self.child = WorkerChild("consumers.workers.child", job)
        with suppress(OSError):  # it has ended already, which its pipe of results says too
            self.child.send(json.dumps(self.task).encode("ascii"))

    def relay(self, number: int) -> None:
        """Relays a stop signal to the process, if one is running."""
        if self.child is not None:
            self.is_stopping = True
            self.child.signal(relayed(number))


def make_places(config: BuildConfig, devices: Sequence[str]) -> list[Place]:
    """The places of a build on ``devices``, among which the machine's resources are divided.

    Args:
        config: the configuration; its ``worker`` is this machine's share of the build.
        devices: the device of each worker.

    Raises:
        ConfigError: ``threads`` is set, and no device is a CPU.
    """
    if config.threads and "cpu" not in devices:
        raise ConfigError(
            f"--threads {config.threads} is for CPUs, and the devices are {', '.join(devices)}.\n"
            "Leave --threads out."
        )
    producers = divided(config.producers or default_producers(), len(devices))
    threads = iter(divided(config.threads or usable_cpus(), max(1, devices.count("cpu"))))
    slots = [max(_FEWEST_SLOTS, n) for n in divided(config.slots, len(devices))]
    if not config.slots:
        slots = [default_slots(count) for count in producers]
    machine = Machine(sum(slots), available_bytes())
    shares = (config.worker or Share(0, 1)).split(len(devices))
    return [
        Place(
            number,
            device,
            shares[number],
            {
                "device": device,
                "worker": asdict(Share(shares[number].index, shares[number].count, machine)),
                "producers": producers[number],
                "slots": slots[number],
                "threads": next(threads) if device == "cpu" else 0,
            },
        )
        for number, device in enumerate(devices)
    ]


def divided(total: int, parts: int) -> list[int]:
    """``total`` in ``parts`` parts that differ by at most one, at least one each."""
    return [max(1, (total + parts - 1 - part) // parts) for part in range(parts)]
