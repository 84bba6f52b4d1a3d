"""An epoch's number that reaches the worker processes of a loader that keeps them.

A ``DataLoader`` with ``persistent_workers`` copies its dataset once: what is set in the trainer's
copy afterwards is not seen. So the number lies in memory that all copies share, whether a worker
was forked or spawned.
"""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen
from operator import index
from typing import Any

import torch

from featurestore.errors import ConfigError

_WRAP = 2**64


class SharedEpoch:
    """One integer, modulo 2**64, in memory shared with the workers.

    It holds one descriptor. A pickle that goes anywhere but into a worker carries the number alone.
    """

    def __init__(self, value: int = 0) -> None:
        """Takes eight bytes of shared memory.

        Raises:
            ConfigError: there are none.
        """
        cell = torch.zeros(1, dtype=torch.int64)
        try:
            cell.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as e:
            raise ConfigError(
                f"There is no shared memory for the epoch: {str(e)[:200]}\n"
                "Loader workers need it as well; mount /dev/shm."
            ) from e
        self._hold(cell)
        self.value = value

    def _hold(self, cell: torch.Tensor) -> None:
        # Every batch asks for the number, and NumPy gives it in a sixth of the time.
        self._cell, self._seen = cell, cell.numpy()

    @property
    def value(self) -> int:
        """The number."""
        return int(self._seen[0])

    @value.setter
    def value(self, value: int) -> None:
        wrapped = index(value) % _WRAP
        self._seen[0] = wrapped - _WRAP if wrapped >= _WRAP // 2 else wrapped

    def __reduce__(self) -> tuple[Any, ...]:
        # torch passes a tensor's memory on to a process that is being started, and nowhere else.
        if get_spawning_popen() is None:
            return SharedEpoch, (self.value,)
        return _adopt, (self._cell,)


def _adopt(cell: torch.Tensor) -> SharedEpoch:
    epoch = SharedEpoch.__new__(SharedEpoch)
    epoch._hold(cell)
    return epoch


class LocalEpoch:
    """A number that no worker looks at, where nothing is drawn.

    Attributes:
        value: the number.
    """

    def __init__(self, value: int = 0) -> None:
        self.value = value
