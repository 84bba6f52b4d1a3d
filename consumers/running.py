"""Run a backbone batch by batch: errors with names, and one wait for the device per chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones import Backbone, check_features
from consumers.staging import Staging
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
                raise BackboneError(f"{name} failed on the GPU: {_first_line(error)}") from error
        return self._host[:rows].numpy()

    def reset(self) -> None:
        """Start a new chunk."""
        self._done = 0

    def _embed(self, sent: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            try:
                return self._checked(self._forward(sent))
            except torch.OutOfMemoryError as error:
                problem = _first_line(error)
            except _MODEL_ERRORS as error:
                raise BackboneError(
                    f"{self._backbone.feature} failed on rows {self._done} to "
                    f"{self._done + self._batch - 1} of a chunk's batch plan:\n"
                    f"  {type(error).__name__}: {_first_line(error)}"
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


class Batcher(ABC):
    """What image and text batchers share: the life of a chunk.

    Args:
        backbone: what embeds.
        batch: rows per forward pass.
        capacity: the most rows of a chunk.
        shape: of one staging buffer.
        dtype: of its elements.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: int,
        capacity: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch size and chunk rows must be >= 1: {batch}, {capacity}")
        self._info = backbone
        self._batch, self._capacity = batch, capacity
        self._rows = self._views = 0
        with _allocating(backbone.feature, batch):
            self._staging = Staging(shape, dtype, backbone.device)
            self._runner = Runner(backbone, self._forward, batch, capacity)

    @abstractmethod
    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        """Embed one staged batch on the device; float32 ``[batch, D]``."""

    @abstractmethod
    def _order(self) -> IntArray | slice:
        """The chunk's row of each feature, in the order of the plan."""

    @abstractmethod
    def flush(self) -> None:
        """Launch what is left of the chunk without waiting; then only finish or discard.

        With several batchers, flush them all before the first ``finish``: the device then works
        on one feature while the host takes over another.

        Raises:
            BackboneError: a batch failed.
        """

    def finish(self, first_sample: int = 0) -> npt.NDArray[np.float32]:
        """End the chunk.

        Args:
            first_sample: index of the chunk's first sample, for messages.

        Returns:
            Features of all rows in the order added, ``[rows, D]``, a copy of its own.

        Raises:
            BackboneError: a batch failed, or a feature is not finite.
            ValueError: nothing was added.
        """
        if not self._rows:
            raise ValueError("the chunk is empty")
        self.flush()
        planned = self._runner.collect(self._rows)
        features = np.empty_like(planned)
        features[self._order()] = planned
        views = self._views
        self.discard()
        name, dim = self._info.feature, self._info.dim
        check_features(name, features, dim, first_sample=first_sample, views=views)
        return features

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


@contextmanager
def _allocating(feature: str, batch: int) -> Iterator[None]:
    """Turn a lack of GPU memory for a batcher's own buffers into BackboneError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(feature, batch, _first_line(error)) from error


def _out_of_memory(feature: str, batch: int, problem: str) -> BackboneError:
    return BackboneError(
        f"batch size {batch} of {feature} needs more GPU memory than is free: {problem}\n"
        f"Free the GPU and go on with --resume, or try --batch-size {feature}={max(1, batch // 2)} "
        "in a new build: the batch size changes the last bits of features."
    )


def _first_line(error: Exception) -> str:
    """What happened; torch adds lines of advice on environment variables of its own."""
    return str(error).strip().partition("\n")[0][:200]
