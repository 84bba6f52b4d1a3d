"""Host buffers on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import BackboneError

_STAGES = 3


@contextmanager
def device_errors(feature: str) -> Iterator[None]:
    """Turn an error of the device itself into BackboneError.

    Kernels fail late: an error of any batch before surfaces at the next wait or copy.
    """
    try:
        yield
    except RuntimeError as error:
        raise BackboneError(f"{feature} failed on the GPU: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What happened; torch adds lines of advice on environment variables of its own."""
    return str(error).strip().partition("\n")[0][:200]


class Staging:
    """Host buffers used in turn, each refilled only after the device has read it.

    Args:
        shape: of one buffer.
        dtype: of its elements.
        device: where the buffers are copied to.
        feature: what they are for, for messages.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, feature: str
    ) -> None:
        self._feature = feature
        self._cuda = device.type == "cuda"
        self._device = device
        stages = _STAGES if self._cuda else 1
        self._hosts = [
            torch.zeros(shape, dtype=dtype, pin_memory=self._cuda) for _ in range(stages)
        ]
        self._arrays = [host.numpy() for host in self._hosts]
        # Copied to places of their own, so that no batch but the first can run out of memory here.
        self._sent = [torch.empty_like(h, device=device) if self._cuda else h for h in self._hosts]
        self._copied: list[torch.cuda.Event | None] = [None] * stages
        self._stage = 0

    @property
    def array(self) -> npt.NDArray[Any]:
        """The buffer to fill now; waits until the device has read what was in it.

        Raises:
            BackboneError: the device failed on something before.
        """
        event = self._copied[self._stage]
        if event is not None:
            with device_errors(self._feature):
                event.synchronize()
            self._copied[self._stage] = None
        return self._arrays[self._stage]

    def send(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Copy the filled buffer's first elements, as ``shape``, to the device; go to the next.

        The result holds until as many sends later as there are stages; on a CPU it is the buffer
        itself. Work queued on the device's current stream before then reads the right values.

        Raises:
            BackboneError: the device failed on something before.
        """
        count = int(np.prod(shape))
        host = self._hosts[self._stage].view(-1)[:count]
        sent = self._sent[self._stage].view(-1)[:count]
        if self._cuda:
            with device_errors(self._feature):
                # The device's current stream, which need not be the current device's.
                stream = torch.cuda.current_stream(self._device)
                sent.copy_(host, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
            self._copied[self._stage] = event
            self._stage = (self._stage + 1) % len(self._hosts)
        return sent.view(shape)
