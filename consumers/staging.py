"""Host buffers on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.gpu_errors import first_line
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


class Staging:
    """Host buffers used in turn, each refilled only after the device has read it.

    On CUDA they are copied on a stream of their own, so that the next batch travels while this one
    is computed.

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
        self._used: list[torch.cuda.Event | None] = [None] * stages
        self._copier = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
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
        itself. Work queued on the device's current stream before the next send reads it right.

        Raises:
            BackboneError: the device failed on something before.
        """
        count = int(np.prod(shape))
        host = self._hosts[self._stage].view(-1)[:count]
        sent = self._sent[self._stage].view(-1)[:count]
        if self._copier is not None:
            with device_errors(self._feature):
                self._copy(host, sent, self._copier)
            self._stage = (self._stage + 1) % len(self._hosts)
        return sent.view(shape)

    def _copy(self, host: torch.Tensor, sent: torch.Tensor, copier: torch.cuda.Stream) -> None:
        # The device's current stream, which need not be the current device's.
        compute = torch.cuda.current_stream(self._device)
        # What reads the batch that was sent last is queued by now, and all that was before.
        now = self._used[self._stage - 1] = compute.record_event()
        copier.wait_event(self._used[self._stage] or now)
        with torch.cuda.stream(copier):
            sent.copy_(host, non_blocking=True)
        # Waiting for it sleeps: a thread that spins would take a core from the producers.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(copier)
        compute.wait_event(copied)
        self._copied[self._stage] = copied
