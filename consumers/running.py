"""Run a backbone batch by batch: errors with names, and no wait for the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones import Backbone, check_features
from consumers.gpu_errors import first_line, lacks_gpu_memory
from consumers.staging import Staging, device_errors
from featurestore.errors import BackboneError

IntArray = npt.NDArray[np.integer[Any]]

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


class CollectedRows:
    """A chunk's features in a host buffer, maybe still on their way from the device."""

    def __init__(self, feature: str, host: torch.Tensor, event: torch.cuda.Event | None) -> None:
        self._feature = feature
        self._host = host
        self._event = event
        self.taken = False

    def take(self, order: IntArray | slice) -> npt.NDArray[np.float32]:
        """Wait for the device; returns a copy ``[rows, D]`` with row ``i`` at ``order[i]``.

        May be called by another thread than the one that runs batches.

        Raises:
            BackboneError: the device failed.
        """
        if self._event is not None:
            with device_errors(self._feature):
                self._event.synchronize()
        features = np.empty(tuple(self._host.shape), np.float32)
        features[order] = self._host.numpy()
        self.taken = True
        return features


class Runner:
    """Runs batches one after the other and collects their features until the chunk ends.

    Features leave through host buffers in turn, so that one chunk can be written while the next is
    made.

    Args:
        backbone: names the feature, its length and its device.
        forward: embeds what ``Staging.send`` returned, row by row; float32 ``[rows, D]``.
        batch: the batch size that was asked for, for messages.
        rows: the most rows of a chunk, with what fills up its batches.
        buffers: chunks whose features may be on their way, the one that is made included.
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
        self._hosts = [torch.empty(shape, pin_memory=self._cuda) for _ in range(buffers)]
        self._device = torch.empty(shape, device=backbone.device) if self._cuda else None
        self._lent: list[CollectedRows | None] = [None] * buffers
        self._turn = 0
        self._done = 0

    def run(self, sent: torch.Tensor) -> None:
        """Embed one batch; its features follow those of the batch before.

        Raises:
            BackboneError: the backbone failed twice for want of memory or once otherwise, or
                returned something that is no ``[rows, D]`` of float32.
            RuntimeError: the features that its buffer had before were never taken.
        """
        lent = self._lent[self._turn]
        if lent is not None and not lent.taken:
            raise RuntimeError("the features of an earlier chunk were not taken yet")
        target = self._hosts[self._turn] if self._device is None else self._device
        features = self._embed(sent)
        with device_errors(self._backbone.feature):
            target[self._done : self._done + len(sent)].copy_(features)
        self._done += len(sent)

    def collect(self, rows: int) -> CollectedRows:
        """End the chunk: its first ``rows`` features, on their way to the host.

        Raises:
            BackboneError: the device failed.
        """
        host, event = self._hosts[self._turn][:rows], None
        if self._device is not None:
            with device_errors(self._backbone.feature):
                host.copy_(self._device[:rows], non_blocking=True)
                # Waiting for it sleeps, see Staging.
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(self._backbone.device))
        collected = self._lent[self._turn] = CollectedRows(self._backbone.feature, host, event)
        self._turn = (self._turn + 1) % len(self._hosts)
        self._done = 0
        return collected

    def reset(self) -> None:
        """Start a new chunk."""
        self._done = 0

    def _embed(self, sent: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            try:
                return self._checked(self._forward(sent), len(sent))
            except _MODEL_ERRORS as error:
                problem = first_line(error)
                if not lacks_gpu_memory(error):
                    raise BackboneError(
                        f"{self._backbone.feature} failed on rows {self._done} to "
                        f"{self._done + len(sent) - 1} of a chunk's batch plan:\n"
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
        shape: of one staging buffer.
        dtype: of its elements.
        buffers: chunks whose features may be on their way, the one that is made included.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: int,
        capacity: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        buffers: int,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch size and chunk rows must be >= 1: {batch}, {capacity}")
        self._info = backbone
        self._batch, self._capacity = batch, capacity
        self._rows = self._views = 0
        with _allocating(backbone.feature, batch):
            self._staging = Staging(shape, dtype, backbone.device, backbone.feature)
            # What fills up the last batch lands behind the chunk's last row.
            filled = -(-capacity // batch) * batch
            self._runner = Runner(backbone, self._forward, batch, filled, buffers)

    @abstractmethod
    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        """Embed one staged batch on the device; float32 ``[batch, D]``."""

    @abstractmethod
    def _order(self) -> IntArray | slice:
        """The chunk's row of each feature, in the order of the plan."""

    @abstractmethod
    def flush(self) -> None:
        """Launch what is left of the chunk without waiting; then only end or discard.

        Raises:
            BackboneError: a batch failed.
        """

    def end(self) -> EndedChunk:
        """End the chunk without waiting for the device; the next one can begin.

        Returns:
            The chunk's features to come. They must have been taken before a batch is launched of
            the chunk that is as many chunks later as there are ``buffers``.

        Raises:
            BackboneError: a batch failed.
            ValueError: nothing was added.
        """
        if not self._rows:
            raise ValueError("the chunk is empty")
        self.flush()
        rows = self._runner.collect(self._rows)
        ended = EndedChunk(self._info.feature, self._info.dim, self._views, self._order(), rows)
        self.discard()
        return ended

    def discard(self) -> None:
        """Forget the chunk so far, after an error or an interruption."""
        self._runner.reset()
        self._rows = self._views = 0

    def _admit(self, views: int) -> slice:
        """The rows of one more sample; raises ValueError where they do not fit."""
        if self._views not in (0, views):
            raise ValueError(f"a sample of {views} views in a chunk of {self._views} views each")
        if self._rows + views > self._capacity:
            raise ValueError(f"a chunk of at most {self._capacity} rows is full at {self._rows}")
        self._views = views
        self._rows += views
        return slice(self._rows - views, self._rows)


@dataclass(frozen=True, slots=True)
class EndedChunk:
    """A chunk whose batches are all launched.

    Attributes:
        feature: what was made.
        dim: length of a feature.
        views: views per sample.
        order: the chunk's row of each feature, in the order of the plan.
        rows: the features, in the order of the plan.
    """

    feature: str
    dim: int
    views: int
    order: IntArray | slice
    rows: CollectedRows

    def take(self, first_sample: int = 0, first_view: int = 0) -> npt.NDArray[np.float32]:
        """Wait for the device, and check every row; may be called by another thread.

        Args:
            first_sample: index of the chunk's first sample, for messages.
            first_view: the first of its views, for messages.

        Returns:
            Features of all rows in the order added, ``[rows, D]``, a copy of its own.

        Raises:
            BackboneError: the device failed, or a feature is not finite.
        """
        features = self.rows.take(self.order)
        check_features(
            self.feature,
            features,
            self.dim,
            first_sample=first_sample,
            first_view=first_view,
            views=self.views,
        )
        return features


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
            f"The buffers of {feature} could not be had: {first_line(error)}\n"
            "Free memory of the machine or the GPU, and go on with --resume."
        ) from error


def _out_of_memory(feature: str, batch: int, problem: str) -> BackboneError:
    return BackboneError(
        f"batch size {batch} of {feature} needs more GPU memory than is free: {problem}\n"
        f"Free the GPU and go on with --resume, or try --batch-size {feature}={max(1, batch // 2)} "
        "in a new build: the batch size changes the last bits of features."
    )
