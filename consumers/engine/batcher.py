"""Fill a chunk with samples, launch its batches, and take its features when they are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones.protocol import Backbone
from consumers.backbones.registry import check_features
from consumers.device.computing import ComputePool, Order
from consumers.engine.batch_plan import IntArray
from consumers.engine.runner import Runner, out_of_memory
from consumers.engine.staging import Staging, device_errors
from featurestore.errors import BackboneError
from featurestore.wording import first_line

# Staging buffers on a GPU: one is filled, one is copied, one is computed from.
_GPU_STAGES = 3


class Batcher(ABC):
    """Base of the image and text batchers: a chunk is filled, then launched, then taken.

    Args:
        backbone: the backbone that embeds the rows.
        batch: batch size, in rows.
        capacity: maximum number of rows of a chunk.
        pool: the threads that embed.
        order: priority of this batcher's batches in ``pool``.
        shape: shape of one staging buffer.
        dtype: dtype of a staging buffer.
        buffers: number of chunks in flight, including the current one.
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
        self._lent: list[LaunchedFeature | None] = [None] * buffers
        self._turn = 0
        with _allocating(backbone.feature, batch):
            stages = stages_of(backbone.device, pool.threads)
            self._staging = Staging(shape, dtype, backbone.device, backbone.feature, stages)
            # The rows that fill up the last batch follow the chunk's last row.
            filled = -(-capacity // batch) * batch
            self._runner = Runner(backbone, self._forward, batch, filled, buffers)

    @abstractmethod
    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        """Embed one staged batch on the device; float32 ``[batch, D]``."""

    @abstractmethod
    def _launch_rest(self) -> IntArray | slice:
        """Launch the chunk's remaining batches; returns the chunk row of each planned row."""

    def launch(self) -> LaunchedFeature:
        """Launch all batches of the chunk; the next chunk can be filled when this returns.

        Returns:
            The chunk's features, which may not be computed yet. They must be taken before rows are
            added to the chunk that is ``buffers`` chunks later. If no sample was added, there are
            no rows.

        Raises:
            BackboneError: a batch failed.
        """
        if not self._rows:
            return _without_rows(self._info)
        places = self._launch_rest()
        host, rows = self._runner.hosts[self._turn], self._rows
        fetched = self._pool.submit(self._order, lambda: self._runner.fetch(host, rows))
        batches = tuple(self._batches)
        launched = LaunchedFeature(self._info, self._views, places, host[:rows], batches, fetched)
        self._lent[self._turn] = launched
        self._turn = (self._turn + 1) % len(self._lent)
        self._reset()
        return launched

    def discard(self) -> None:
        """Discard the samples that were added since the last launch, and cancel their batches."""
        for batch in self._batches:
            batch.cancel()
        self._reset()

    def _reset(self) -> None:
        self._rows = self._views = self._submitted = 0
        self._batches = []

    def _admit(self, views: int) -> slice:
        """Reserve the rows of one more sample; raises ValueError if they do not fit."""
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
        """Queue the next batch of the plan, which has ``rows`` rows."""
        host, first = self._runner.hosts[self._turn], self._submitted
        batch = self._pool.submit(self._order, lambda: launch(host, first))
        self._submitted += rows
        self._batches.append(batch)
        return batch


@dataclass(slots=True)
class LaunchedFeature:
    """One feature of a chunk whose batches are all launched.

    Attributes:
        backbone: the backbone that computes the feature.
        views: number of views per sample.
        places: index into the chunk's rows for each row of ``host``.
        host: float32 ``[rows, D]``, the features in the order of the batch plan; valid once
            ``batches`` and the event of ``fetched`` are done.
        batches: futures of the batches, in the order of the plan.
        fetched: future of the event that completes when ``host`` is filled; see ``Runner.fetch``.
        taken: whether :meth:`take` has copied the features out of ``host``.
    """

    backbone: Backbone
    views: int
    places: IntArray | slice
    host: torch.Tensor
    batches: Sequence[Future[None]]
    fetched: Future[torch.cuda.Event | None]
    taken: bool = False

    @property
    def feature(self) -> str:
        """The feature's name."""
        return self.backbone.feature

    def take(
        self, samples: Sequence[int] | None = None, first_view: int = 0
    ) -> npt.NDArray[np.float32]:
        """Wait for the features, and check every row. May be called from any thread.

        Args:
            samples: indices of the samples that were added, for messages; None for 0, 1, ...
            first_view: index of their first view, for messages.

        Returns:
            Features of all rows in the order added, float32 ``[rows, D]``, as a new array.

        Raises:
            BackboneError: a batch or the device failed, or a feature is not finite.
            CancelledError: the build was stopped.
        """
        for batch in self.batches:
            batch.result()
        event = self.fetched.result()
        if event is not None:
            # The current device of the calling thread may be another GPU.
            with device_errors(self.feature), torch.cuda.device(self.backbone.device):
                event.synchronize()
        features = np.empty(tuple(self.host.shape), np.float32)
        features[self.places] = self.host.numpy()
        self.taken = True
        check_features(
            self.feature,
            features,
            self.backbone.dim,
            samples=samples,
            first_view=first_view,
            views=self.views,
        )
        return features

    def leave(self) -> None:
        """Leaves features that are not computed, because the chunk is not needed any more."""
        self.taken = True


def _without_rows(backbone: Backbone) -> LaunchedFeature:
    """The feature of a chunk none of whose samples has the backbone's input."""
    fetched: Future[torch.cuda.Event | None] = Future()
    fetched.set_result(None)
    return LaunchedFeature(backbone, 1, slice(None), torch.empty(0, backbone.dim), (), fetched)


def stages_of(device: torch.device, threads: int) -> int:
    """Number of staging buffers: one is filled while each thread computes from another."""
    return _GPU_STAGES if device.type == "cuda" else threads + 1


@contextmanager
def _allocating(feature: str, batch: int) -> Iterator[None]:
    """Turn a lack of GPU memory for a batcher's own buffers into BackboneError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(feature, batch, first_line(error)) from error
    except RuntimeError as error:
        # This includes "CUDA error: out of memory", which here may mean that main memory could not
        # be pinned.
        raise BackboneError(
            f"The buffers of {feature} could not be allocated: {first_line(error)}\n"
            "Free memory of the machine or the GPU, and continue with --resume."
        ) from error
