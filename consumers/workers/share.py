"""Which of several workers a process is: ``--worker K/N``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from featurestore.errors import ConfigError

_SHARE = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the workers of one parent process, or of one Ray driver on one machine, need together.

    Attributes:
        slots: number of slots of all of them.
        free_bytes: bytes of memory that were available before the first of them started.
    """

    slots: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """The place of one worker among all workers of a build.

    It only spreads the work: with wrong or repeated numbers a build is slower, but never wrong.

    Attributes:
        index: number of this worker, from 0.
        count: number of workers.
        machine: what it needs together with the other workers on its machine, or None if nobody
            has placed several of them there.
    """

    index: int
    count: int
    machine: Machine | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parses ``K/N``.

        Raises:
            ConfigError: the text is not K/N with 0 <= K < N.
        """
        match = _SHARE.fullmatch(text.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(
                f"--worker is K/N with K from 0 to N - 1, found {text!r}.\n"
                "--producers sets the number of producer processes."
            )
        return cls(int(match[1]), int(match[2]))

    def part(self, chunks: int) -> range:
        """The chunks that this worker builds first, of a store with ``chunks`` chunks."""
        return range(self.index * chunks // self.count, (self.index + 1) * chunks // self.count)

    def split(self, devices: int) -> list[Share]:
        """The workers of the devices of one machine, if this share is the machine's."""
        return [
            Share(self.index * devices + device, self.count * devices) for device in range(devices)
        ]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
