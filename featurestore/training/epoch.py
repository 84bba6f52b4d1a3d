"""An epoch number that reaches the persistent worker processes of a loader.

A ``DataLoader`` with ``persistent_workers`` copies its dataset only once: the workers do not see
later changes to the trainer's copy. The number is therefore in memory that all copies share, with
forked and with spawned workers.
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

    It keeps one file descriptor open. A pickle shares the memory with a worker that is being
    started; any other pickle holds only the number.
    """

    def __init__(self, value: int = 0) -> None:
        """Allocates eight bytes of shared memory.

        Raises:
            ConfigError: shared memory is not available.
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
        # Every batch reads the number, which takes a sixth of the time through NumPy.
        self._cell, self._seen = cell, cell.numpy()

    @property
    def value(self) -> int:
        """The epoch's number, shared with the loader's worker processes."""
        return int(self._seen[0])

    @value.setter
    def value(self, value: int) -> None:
        wrapped = index(value) % _WRAP
        self._seen[0] = wrapped - _WRAP if wrapped >= _WRAP // 2 else wrapped

    def __reduce__(self) -> tuple[Any, ...]:
        # torch can only share a tensor's memory with a process that is being started.
        if get_spawning_popen() is None:
            return SharedEpoch, (self.value,)
        return _adopt, (self._cell,)


def _adopt(cell: torch.Tensor) -> SharedEpoch:
    epoch = SharedEpoch.__new__(SharedEpoch)
    epoch._hold(cell)
    return epoch


class LocalEpoch:
    """An epoch number without shared memory, for views that do not depend on the epoch.

    Attributes:
        value: the epoch number.
    """

    def __init__(self, value: int = 0) -> None:
        self.value = value
