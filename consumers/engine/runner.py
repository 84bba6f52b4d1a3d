"""Run a backbone batch by batch: errors with names, and no wait for the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones.registry import Backbone, check_features
from consumers.device.computing import ComputePool, Order
from consumers.device.gpu_errors import lacks_gpu_memory
from consumers.engine.batch_plan import IntArray
from consumers.engine.staging import Stage, Staging, device_errors
from featurestore.errors import BackboneError
from featurestore.wording import first_line

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
# On a GPU: one is filled, one travels, one is computed.
_GPU_STAGES = 3


class Runner:
    """Embeds batches, and puts their features into host buffers.

    Features leave through host buffers in turn, so that one chunk can be written while the next is
    embedded. Several threads may embed at once, each its own rows.

    Args:
        backbone: names the feature, its length and its device.
        forward: embeds what ``Stage.send`` returned, row by row; float32 ``[rows, D]``.
        batch: the batch size that was asked for, for messages.
        rows: the most rows of a chunk, with what fills up its batches.
        buffers: chunks whose features are not taken, the current one included.
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
        # One for all chunks: the device copies a chunk's rows out before it computes the next's.
        self._device = torch.empty(shape, device=backbone.device) if self._cuda else None

    def run(self, stage: Stage, shape: tuple[int, ...], host: torch.Tensor, first: int) -> None:
        """Embeds one staged batch into rows ``first`` and following.

        Args:
            stage: the filled buffer.
            shape: of the batch.
            host: the chunk's buffer.
            first: the first row.

        Raises:
            BackboneError: the backbone failed twice for want of memory or once otherwise, or
                returned something that is no ``[rows, D]`` of float32.
        """
        with device_errors(self._backbone.feature):
            sent = stage.send(shape)
        features = self._embed(sent, first)
        target = host if self._device is None else self._device
        with device_errors(self._backbone.feature):
            target[first : first + len(sent)].copy_(features)
            stage.use()

    def collect(self, host: torch.Tensor, rows: int) -> torch.cuda.Event | None:
        """Has the chunk's first ``rows`` features copied to the host, once they are computed.

        Returns:
            What happens when they are there; None where they are.

        Raises:
            BackboneError: the device failed.
        """
        if self._device is None:
            return None
        with device_errors(self._backbone.feature):
            host[:rows].copy_(self._device[:rows], non_blocking=True)
            # Waiting for it sleeps, see Stage.
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
            # Once more, as another process may have left the GPU since. Only out here, where the
            # error with its frames is gone, can the memory that they held be freed. Never with a
            # smaller batch: that would change the features' last bits.
            if sent.is_cuda:
                with device_errors(self._backbone.feature):  # it waits, and hears of earlier ones
                    torch.cuda.empty_cache()
        raise _out_of_memory(self._backbone.feature, self._batch, problem)

    def _checked(self, features: torch.Tensor, rows: int) -> torch.Tensor:
        expected = (rows, self._backbone.dim)
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


class Batcher(ABC):
    """What image and text batchers share: the life of a chunk.

    Args:
        backbone: what embeds.
        batch: rows per forward pass.
        capacity: the most rows of a chunk.
        pool: the threads that embed.
        order: what they embed first.
        shape: of one staging buffer.
        dtype: of its elements.
        buffers: chunks whose features are not taken, the current one included.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: int,
        capacity: int,
        pool: ComputePool,
        *,
        order: Order,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        buffers: int,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch size and chunk rows must be >= 1: {batch}, {capacity}")
        self._info = backbone
        self._batch, self._capacity = batch, capacity
        self._pool, self._order = pool, order
        self._rows = self._views = self._submitted = 0
        self._batches: list[Future[None]] = []
        self._lent: list[EndedChunk | None] = [None] * buffers
        self._turn = 0
        with _allocating(backbone.feature, batch):
            stages = stages_of(backbone.device, pool.threads)
            self._staging = Staging(shape, dtype, backbone.device, backbone.feature, stages)
            # What fills up the last batch lands behind the chunk's last row.
            filled = -(-capacity // batch) * batch
            self._runner = Runner(backbone, self._forward, batch, filled, buffers)

    @abstractmethod
    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        """Embed one staged batch on the device; float32 ``[batch, D]``."""

    @abstractmethod
    def _flush(self) -> IntArray | slice:
        """Submit what is left of the chunk; returns each planned row's place in the chunk."""

    def end(self) -> EndedChunk:
        """End the chunk without waiting for its features; the next one can begin.

        Returns:
            The chunk's features to come. They must have been taken before rows are added to the
            chunk that is as many chunks later as there are ``buffers``.

        Raises:
            BackboneError: a batch failed.
            ValueError: nothing was added.
        """
        if not self._rows:
            raise ValueError("the chunk is empty")
        places = self._flush()
        host, rows = self._runner.hosts[self._turn], self._rows
        collected = self._pool.submit(self._order, lambda: self._runner.collect(host, rows))
        batches = tuple(self._batches)
        ended = EndedChunk(self._info, self._views, places, host[:rows], batches, collected)
        self._lent[self._turn] = ended
        self._turn = (self._turn + 1) % len(self._lent)
        self._reset()
        return ended

    def discard(self) -> None:
        """Forget the chunk so far, after an error or an interruption."""
        for batch in self._batches:
            batch.cancel()
        self._reset()

    def _reset(self) -> None:
        self._rows = self._views = self._submitted = 0
        self._batches = []

    def _admit(self, views: int) -> slice:
        """The rows of one more sample; raises ValueError where they do not fit."""
        if self._views not in (0, views):
            raise ValueError(f"a sample of {views} views in a chunk of {self._views} views each")
        if self._rows + views > self._capacity:
            raise ValueError(f"a chunk of at most {self._capacity} rows is full at {self._rows}")
        lent = self._lent[self._turn]
        if lent is not None and not lent.taken:
            raise RuntimeError("the features of an earlier chunk were not taken yet")
        self._views = views
        self._rows += views
        return slice(self._rows - views, self._rows)

    def _submit(self, rows: int, launch: Callable[[torch.Tensor, int], None]) -> Future[None]:
        """Queues the next batch of the plan, of so many rows."""
        host, first = self._runner.hosts[self._turn], self._submitted
        batch = self._pool.submit(self._order, lambda: launch(host, first))
        self._submitted += rows
        self._batches.append(batch)
        return batch


@dataclass(slots=True)
class EndedChunk:
    """A chunk whose batches are all submitted.

    Attributes:
        backbone: what embeds it.
        views: views per sample.
        places: the chunk's row of each feature, in the order of the plan.
        host: float32 ``[rows, D]``, the features in the order of the plan, once they are there.
        batches: the batches, in the order of the plan.
        collected: done when the batches are launched, with the device's last event.
        taken: whether the features were copied out of ``host``.
    """

    backbone: Backbone
    views: int
    places: IntArray | slice
    host: torch.Tensor
    batches: Sequence[Future[None]]
    collected: Future[torch.cuda.Event | None]
    taken: bool = False

    @property
    def feature(self) -> str:
        """The feature's name."""
        return self.backbone.feature

    def take(self, first_sample: int = 0, first_view: int = 0) -> npt.NDArray[np.float32]:
        """Wait for the features, and check every row; may be called by another thread.

        Args:
            first_sample: index of the chunk's first sample, for messages.
            first_view: the first of its views, for messages.

        Returns:
            Features of all rows in the order added, ``[rows, D]``, a copy of its own.

        Raises:
            BackboneError: a batch or the device failed, or a feature is not finite.
            CancelledError: the build was stopped.
        """
        for batch in self.batches:
            batch.result()
        event = self.collected.result()
        if event is not None:
            # Whichever thread this is: its own current device may be another GPU.
            with device_errors(self.feature), torch.cuda.device(self.backbone.device):
                event.synchronize()
        features = np.empty(tuple(self.host.shape), np.float32)
        features[self.places] = self.host.numpy()
        self.taken = True
        check_features(
            self.feature,
            features,
            self.backbone.dim,
            first_sample=first_sample,
            first_view=first_view,
            views=self.views,
        )
        return features


def stages_of(device: torch.device, threads: int) -> int:
    """Staging buffers of a batcher: one is filled while every thread computes from another."""
    return _GPU_STAGES if device.type == "cuda" else threads + 1


@contextmanager
def _allocating(feature: str, batch: int) -> Iterator[None]:
    """Turn a lack of GPU memory for a batcher's own buffers into BackboneError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(feature, batch, first_line(error)) from error
    except RuntimeError as error:
        # "CUDA error: out of memory" too: here it may be main memory that cannot be pinned.
        raise BackboneError(
            f"The buffers of {feature} could not be allocated: {first_line(error)}\n"
            "Free memory of the machine or the GPU, and continue with --resume."
        ) from error


def _out_of_memory(feature: str, batch: int, problem: str) -> BackboneError:
    return BackboneError(
        f"batch size {batch} of {feature} needs more GPU memory than is free: {problem}\n"
        f"Free the GPU and go on with --resume, or try --batch-size {feature}={max(1, batch // 2)} "
        "in a new build: the batch size changes the last bits of features."
    )
