"""Run a backbone batch by batch, without waiting for the device; errors name the feature."""

from __future__ import annotations

from collections.abc import Callable

import torch

from consumers.backbones.protocol import Backbone
from consumers.device.gpu_errors import lacks_gpu_memory
from consumers.engine.staging import Stage, device_errors
from featurestore.errors import BackboneError
from featurestore.wording import first_line

# Errors that a model's code may raise on a batch; torch's CUDA errors are RuntimeErrors.
_MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Runner:
    """Embeds batches, and copies their features into host buffers.

    Host buffers are used in turn, so that one chunk can be written while the next is embedded.
    Several threads may embed at the same time, each of them other rows.

    Args:
        backbone: the backbone, of which the feature's name, dimension and device are used.
        forward: function that embeds the tensor that ``Stage.send`` returned; returns float32
            ``[rows, D]``.
        batch: the configured batch size, for messages.
        rows: maximum number of rows of a chunk, including the rows that fill up its last batch.
        buffers: number of chunks in flight, including the current one.
    """

    def __init__(
        self,
        backbone: Backbone,
        forward: Callable[[torch.Tensor], torch.Tensor],
        batch: int,
        rows: int,
        buffers: int,
    ) -> None:
        self._backbone = backbone
        self._forward = forward
        self._batch = batch
        shape = (rows, backbone.dim)
        self._cuda = backbone.device.type == "cuda"
        self.hosts = [torch.empty(shape, pin_memory=self._cuda) for _ in range(buffers)]
        # One for all chunks: the device copies a chunk's rows out before it computes the next ones.
        self._device = torch.empty(shape, device=backbone.device) if self._cuda else None

    def run(self, stage: Stage, shape: tuple[int, ...], host: torch.Tensor, first: int) -> None:
        """Embeds one staged batch; its features become the chunk's rows from ``first`` on.

        Args:
            stage: the filled staging buffer.
            shape: shape of the batch.
            host: the chunk's host buffer, float32 ``[rows, D]``.
            first: index of the batch's first row in ``host``.

        Raises:
            BackboneError: the backbone ran out of memory twice, failed in another way once, or
                returned something other than float32 ``[rows, D]``.
        """
        with device_errors(self._backbone.feature):
            sent = stage.send(shape)
        features = self._embed(sent, first)
        target = host if self._device is None else self._device
        with device_errors(self._backbone.feature):
            target[first : first + len(sent)].copy_(features)
            stage.use()

    def fetch(self, host: torch.Tensor, rows: int) -> torch.cuda.Event | None:
        """Queues the copy of the chunk's first ``rows`` features to ``host``.

        Returns:
            The event that completes when the copy is done; None on a CPU, where the features are in
            ``host`` already.

        Raises:
            BackboneError: the device failed.
        """
        if self._device is None:
            return None
        with device_errors(self._backbone.feature):
            host[:rows].copy_(self._device[:rows], non_blocking=True)
            # A blocking event lets the waiting thread sleep, see Stage.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._backbone.device))
        return event

    def _embed(self, sent: torch.Tensor, first: int) -> torch.Tensor:
        for _ in range(2):
            try:
                return self._checked(self._forward(sent), len(sent))
            except _MODEL_ERRORS as error:
                problem = first_line(error)
                if not lacks_gpu_memory(error):
                    raise BackboneError(
                        f"{self._backbone.feature} failed on rows {first} to "
                        f"{first + len(sent) - 1} of a chunk's batch plan:\n"
                        f"  {type(error).__name__}: {problem}"
                    ) from error
            # Try once more: another process may have freed GPU memory meanwhile. The cache is
            # emptied outside of the except block, because the error's frames hold memory until it
            # ends. The batch is never made smaller: that would change the features' last bits.
            if sent.is_cuda:
                with device_errors(
                    self._backbone.feature
                ):  # it also raises errors of earlier kernels
                    torch.cuda.empty_cache()
        raise out_of_memory(self._backbone.feature, self._batch, problem)

    def _checked(self, features: torch.Tensor, rows: int) -> torch.Tensor:
        expected = (rows, self._backbone.dim)
        if not isinstance(features, torch.Tensor):
            returned = f"a {type(features).__name__}"
        elif (
            features.shape == expected
            and features.dtype == torch.float32
            and features.device.type == self._backbone.device.type
        ):
            return features
        else:
            returned = f"{features.dtype} {list(features.shape)} on {features.device}"
        raise BackboneError(
            f"{self._backbone.feature} returned {returned}; "
            f"expected torch.float32 {list(expected)} on {self._backbone.device}."
        )


def out_of_memory(feature: str, batch: int, problem: str) -> BackboneError:
    """The error for a batch, or its buffers, that need more GPU memory than is free."""
    return BackboneError(
        f"batch size {batch} of {feature} needs more GPU memory than is free: {problem}\n"
        f"Free the GPU and continue with --resume, or try --batch-size "
        f"{feature}={max(1, batch // 2)} in a new build: the batch size changes the last bits of "
        "features."
    )
