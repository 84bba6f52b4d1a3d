"""Run a backbone batch by batch: staging to the device, errors with names, one wait per chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones import Backbone
from featurestore.errors import BackboneError

_STAGES = 3
# What a model's code raises on a batch; torch's CUDA errors are RuntimeErrors.
_MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Staging:
    """Host buffers used in turn, each refilled only after the device has read it.

    Args:
        shape: of one buffer.
        dtype: of its elements.
        device: where the buffers are copied to.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
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
        """The buffer to fill now; waits until the device has read what was in it."""
        event = self._copied[self._stage]
        if event is not None:
            event.synchronize()
            self._copied[self._stage] = None
        return self._arrays[self._stage]

    def send(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Copy the filled buffer's first elements, as ``shape``, to the device; go to the next.

        The result holds until as many sends later as there are stages; on a CPU it is the buffer
        itself. Work queued on the device's current stream before then reads the right values.
        """
        count = int(np.prod(shape))
        host = self._hosts[self._stage].view(-1)[:count]
        sent = self._sent[self._stage].view(-1)[:count]
        if self._cuda:
            # The device's current stream, which need not be the current device's.
            stream = torch.cuda.current_stream(self._device)
            sent.copy_(host, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
            self._copied[self._stage] = event
            self._stage = (self._stage + 1) % len(self._hosts)
        return sent.view(shape)


class Runner:
    """Runs full batches one after the other and collects their features until the chunk ends.

    Args:
        backbone: names the feature, its length and its device.
        forward: embeds what ``Staging.send`` returned; float32 ``[batch, D]``.
        batch: rows per forward pass.
        rows: the most rows of a chunk.
    """

    def __init__(
        self,
        backbone: Backbone,
        forward: Callable[[torch.Tensor], torch.Tensor],
        batch: int,
        rows: int,
    ) -> None:
        self._backbone = backbone
        self._forward = forward
        self._batch = batch
        # Full batches only: the last one's filling lands behind the chunk's last row.
        shape = (-(-rows // batch) * batch, backbone.dim)
        self._features = torch.empty(shape, device=backbone.device)
        cuda = backbone.device.type == "cuda"
        self._host = torch.empty(shape, pin_memory=True) if cuda else self._features
        self._done = 0

    def run(self, sent: torch.Tensor) -> None:
        """Embed one full batch; its features follow those of the batch before.

        Raises:
            BackboneError: the backbone failed twice for want of memory or once otherwise, or
                returned something that is no ``[batch, D]`` of float32.
        """
        features = self._embed(sent)
        self._features[self._done : self._done + self._batch].copy_(features)
        self._done += self._batch

    def collect(self, rows: int) -> npt.NDArray[np.float32]:
        """Wait for the device; returns the first ``rows`` features, valid until the next run."""
        if self._host is not self._features:
            try:
                self._host[:rows].copy_(self._features[:rows], non_blocking=True)
                torch.cuda.current_stream(self._backbone.device).synchronize()
            except RuntimeError as error:
                # Kernels fail late: an error of any batch of the chunk surfaces here.
                name = self._backbone.feature
                raise BackboneError(f"{name} failed on the GPU: {error}") from error
        return self._host[:rows].numpy()

    def reset(self) -> None:
        """Start a new chunk."""
        self._done = 0

    def _embed(self, sent: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            try:
                return self._checked(self._forward(sent))
            except torch.OutOfMemoryError as error:
                problem = str(error)
            except _MODEL_ERRORS as error:
                raise BackboneError(
                    f"{self._backbone.feature} failed on rows {self._done} to "
                    f"{self._done + self._batch - 1} of a chunk's batch plan:\n"
                    f"  {type(error).__name__}: {error}"
                ) from error
            # Once more, as another process may have left the GPU since. Only out here, where the
            # error with its frames is gone, can the memory that they held be freed. Never with a
            # smaller batch: that would change the features' last bits.
            if sent.is_cuda:
                torch.cuda.empty_cache()
        raise _out_of_memory(self._backbone.feature, self._batch, problem)

    def _checked(self, features: torch.Tensor) -> torch.Tensor:
        expected = (self._batch, self._backbone.dim)
        if not isinstance(features, torch.Tensor):
            found = f"a {type(features).__name__}"
        elif (
            features.shape == expected
            and features.dtype == torch.float32
            and features.device.type == self._backbone.device.type
        ):
            return features
        else:
            found = f"{features.dtype} {list(features.shape)} on {features.device}"
        raise BackboneError(
            f"{self._backbone.feature} returned {found}; "
            f"expected torch.float32 {list(expected)} on {self._backbone.device}."
        )


@contextmanager
def allocating(feature: str, batch: int) -> Iterator[None]:
    """Turn a lack of GPU memory for a batcher's own buffers into BackboneError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(feature, batch, str(error)) from error


def _out_of_memory(feature: str, batch: int, problem: str) -> BackboneError:
    first_line = problem.partition("\n")[0][:200]
    return BackboneError(
        f"batch size {batch} of {feature} needs more GPU memory than is free: {first_line}\n"
        f"Free the GPU and go on with --resume, or try --batch-size {feature}={max(1, batch // 2)} "
        "in a new build: the batch size changes the last bits of features."
    )
