"""How fast several devices and machines build a store, from a trial on one of the devices.

Devices on one machine divide its producers; workers on the CPU divide its CPUs too, so that two of
them are as fast as one. Two workers on one GPU share it. Machines are assumed to be alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.workers.share import Share


@dataclass(frozen=True, slots=True)
class Spread:
    """The devices of a build.

    Attributes:
        devices: the device of each worker on this machine.
        machines: number of machines.
    """

    devices: tuple[str, ...]
    machines: int = 1

    @property
    def workers(self) -> int:
        """Number of workers on all machines."""
        return len(self.devices) * self.machines

    @property
    def distinct(self) -> int:
        """Number of different devices of this machine."""
        return len(set(self.devices))

    def rates(self, backbones: float | None, producers: float | None) -> tuple[float, str]:
        """Samples per second of all machines together, and the side that limits them.

        Args:
            backbones: samples per second of one device that does not wait; None if not known.
            producers: samples per second of the producers of one machine; None if not known.
        """
        computed = None if backbones is None else backbones * self.distinct
        known = [
            (rate, side)
            for rate, side in ((computed, "backbones"), (producers, "producers"))
            if rate
        ]
        rate, side = min(known, default=(0.0, "unknown"))
        return rate * self.machines, side


def spread_of(devices: tuple[str, ...], share: Share | None, device: str) -> Spread:
    """The devices of a build with ``devices`` or ``device``, of which this machine has a share."""
    return Spread(devices or (device,), 1 if share is None else share.count)
