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

    Kernels run asynchronously: the error of an earlier batch is raised by a later wait or copy.
    """
    try:
        yield
    except RuntimeError as error:
        raise BackboneError(f"{feature} failed on the GPU: {first_line(error)}") from error


class Stage:
    """One host buffer, and its copy on the device.

    On CUDA it is copied in a separate stream, so that the next batch is copied while this one is
    computed.

    Attributes:
        array: the host buffer as a numpy array, of the given shape and dtype.
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
        # The device's buffer is allocated once, so that no later batch can run out of memory here.
        self._sent = self._host if copier is None else torch.empty_like(self._host, device=device)
        self._device = device
        self._copier = copier
        self._copied: torch.cuda.Event | None = None
        self._used: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Waits until the device has read the host buffer, so that it can be overwritten."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None

    def send(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Copies the first elements of the buffer to the device, as a tensor of ``shape``.

        The tensor is valid until the next call; on a CPU it is the buffer itself.
        """
        count = int(np.prod(shape))
        host, sent = self._host.view(-1)[:count], self._sent.view(-1)[:count]
        if self._copier is not None:
            self._copy(host, sent, self._copier)
        return sent.view(shape)

    def use(self) -> None:
        """Records that every kernel that reads the sent tensor is queued on the device."""
        if self._copier is not None:
            self._used = torch.cuda.current_stream(self._device).record_event()

    def _copy(self, host: torch.Tensor, sent: torch.Tensor, copier: torch.cuda.Stream) -> None:
        # The current stream of this buffer's device, which need not be the current device.
        compute = torch.cuda.current_stream(self._device)
        # Before the first use, queued kernels may still use the memory for another tensor.
        copier.wait_event(self._used or compute.record_event())
        with torch.cuda.stream(copier):
            sent.copy_(host, non_blocking=True)
        # A blocking event lets the waiting thread sleep: spinning would take a CPU core from the
        # producers.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(copier)
        compute.wait_event(copied)
        self._copied = copied


class Staging:
    """A free list of host buffers; a buffer is reused when the device has read it.

    Args:
        shape: shape of one buffer.
        dtype: dtype of its elements.
        device: device that the buffers are copied to.
        feature: name of the feature, for messages.
        stages: number of buffers.
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
        """Waits for a free buffer and returns it, to be filled.

        Raises:
            BackboneError: the device failed on an earlier batch.
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
        """Returns a buffer to the free list: its batch is launched or was discarded."""
        self._free.put(stage)
