"""Host buffers on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import BackboneError
from featurestore.wording import first_line


@contextmanager
def device_errors(feature: str) -> Iterator[None]:
    """Turn an error of the device itself into BackboneError.

    Kernels fail late: an error of any batch before surfaces at the next wait or copy.
    """
    try:
        yield
    except RuntimeError as error:
        raise BackboneError(f"{feature} failed on the GPU: {first_line(error)}") from error


class Stage:
    """One host buffer, and its place on the device.

    On CUDA it is copied on a stream of its own, so that the next batch travels while this one is
    computed.

    Attributes:
        array: the host buffer.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        copier: torch.cuda.Stream | None,
    ) -> None:
        self._host = torch.zeros(shape, dtype=dtype, pin_memory=copier is not None)
        self.array: npt.NDArray[Any] = self._host.numpy()
        # Copied to a place of its own, so that no batch but the first can run out of memory here.
        self._sent = self._host if copier is None else torch.empty_like(self._host, device=device)
        self._device = device
        self._copier = copier
        self._copied: torch.cuda.Event | None = None
        self._used: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Waits until the device has read what was in the host buffer."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None

    def send(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Copies the first elements, as ``shape``, to the device.

        The result holds until the next call; on a CPU it is the buffer itself.
        """
        count = int(np.prod(shape))
        host, sent = self._host.view(-1)[:count], self._sent.view(-1)[:count]
        if self._copier is not None:
            self._copy(host, sent, self._copier)
        return sent.view(shape)

    def use(self) -> None:
        """Notes that everything which reads what was sent is queued on the device by now."""
        if self._copier is not None:
            self._used = torch.cuda.current_stream(self._device).record_event()

    def _copy(self, host: torch.Tensor, sent: torch.Tensor, copier: torch.cuda.Stream) -> None:
        # The device's current stream, which need not be the current device's.
        compute = torch.cuda.current_stream(self._device)
        # Before its first use, its memory may have been that of something still to be computed.
        copier.wait_event(self._used or compute.record_event())
        with torch.cuda.stream(copier):
            sent.copy_(host, non_blocking=True)
        # Waiting for it sleeps: a thread that spins would take a core from the producers.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(copier)
        compute.wait_event(copied)
        self._copied = copied


class Staging:
    """Host buffers, each used again once the device has read it.

    Args:
        shape: of one buffer.
        dtype: of its elements.
        device: where the buffers are copied to.
        feature: what they are for, for messages.
        stages: how many.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        feature: str,
        stages: int,
    ) -> None:
        self._feature = feature
        copier = None
        if device.type == "cuda":
            copier = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free: SimpleQueue[Stage] = SimpleQueue()
        for _ in range(stages):
            self._free.put(Stage(shape, dtype, device, copier))

    def take(self) -> Stage:
        """A buffer to fill; waits for one.

        Raises:
            BackboneError: the device failed on something before.
        """
        stage = self._free.get()
        try:
            with device_errors(self._feature):
                stage.wait()
        except BaseException:
            self._free.put(stage)
            raise
        return stage

    def give_back(self, stage: Stage) -> None:
        """Ends the use of a buffer: its batch is launched, or will never be."""
        self._free.put(stage)
