"""A chunk's rows for one backbone, embedded by the model alone and as a build does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.flops import forward_flops, text_flops
from benchmarks.full_size import VIEWS, draw_lengths
from benchmarks.measuring import Lap
from consumers.device.computing import ComputePool, Need
from consumers.device.devices import resolve_threads
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.engine.committing import Committer, LaunchedChunk

# Fields of one colour per side of an image: noise alone would look the same to a model.
FIELDS = 7


class Work:
    """A chunk's rows for one backbone, in host memory and in the batches of the plan.

    Attributes:
        rows: of the chunk.
        useful: FLOPs of the rows themselves.
        spent: FLOPs of the batches, with what pads texts and fills up the last batch.
    """

    def __init__(self, backbone: Any, batch: int, samples: int) -> None:
        self.backbone, self.rows = backbone, samples * VIEWS
        threads = resolve_threads(0, str(backbone.device))
        # Ends with the process.
        self._pool = ComputePool(threads, backbone.device).__enter__()
        self._batch, self._samples = batch, samples
        self._rng = np.random.default_rng(0)
        self._batchers: Sequence[ImageBatcher | TextBatcher]
        self.batches: list[tuple[torch.Tensor, ...]]
        self.useful: float
        self.spent: float
        if hasattr(backbone, "image"):
            self._make_images()
        else:
            self._make_texts()

    def _make_images(self) -> None:
        side, batch = self.backbone.image.size, self._batch
        fields = self._rng.integers(0, 256, (VIEWS, FIELDS, FIELDS, 3), dtype=np.uint8)
        at = np.arange(side) * FIELDS // side
        # One sample's pixels again and again; it is not the content that takes time.
        self._pixels = fields[:, at][:, :, at]
        self._batchers = [ImageBatcher(self.backbone, batch, self.rows, self._pool)]
        order = np.arange(-(-self.rows // batch) * batch).reshape(-1, batch)
        self.batches = [self._sent(self._pixels[rows % VIEWS]) for rows in order]
        self.batches[-1][0][self.rows - batch * (len(order) - 1) :] = 0  # what fills it up
        one = forward_flops(self.backbone, *self.batches[0]) / batch
        self.useful, self.spent = one * self.rows, one * order.size

    def _make_texts(self) -> None:
        limit, batch = self.backbone.text.max_length, self._batch
        self._lengths = draw_lengths(self._rng, self.rows, limit)
        self._ids = self._rng.integers(3, 90, (self.rows, limit), dtype=np.int32)
        # A build has two as well, of which one chunk's texts are embedded while the next come.
        batchers = [TextBatcher(self.backbone, batch, self.rows, self._pool) for _ in range(2)]
        self._batchers, self.plan = batchers, batchers[0].plan(self._lengths)
        self.batches = [self._padded(b.rows, b.length) for b in self.plan]
        one = text_flops(self.backbone)
        self.useful = float(one(self._lengths.astype(float)).sum())
        self.spent = sum(len(b.rows) * float(one(b.length)) for b in self.plan)

    def _padded(self, rows: Sequence[int], length: int) -> tuple[torch.Tensor, ...]:
        mask = np.arange(length) < self._lengths[list(rows), None]
        ids = np.where(mask, self._ids[list(rows), :length], self.backbone.text.pad_id)
        return self._sent(ids.astype(np.int64), mask.astype(np.int64))

    def _sent(self, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self.backbone.device) for array in arrays)

    def alone(self) -> torch.Tensor:
        """The features of all batches, in the order of the plan, on the device."""
        return torch.cat([self.backbone.embed(*batch) for batch in self.batches])[: self.rows]

    def fill(self, number: int = 0) -> ImageBatcher | TextBatcher:
        """Adds the samples of a chunk, and returns what they were added to."""
        batcher = self._batchers[number % len(self._batchers)]
        for sample in range(self._samples):
            if isinstance(batcher, ImageBatcher):
                batcher.add(self._pixels[0], self._pixels[1:])
            else:
                rows = slice(sample * VIEWS, (sample + 1) * VIEWS)
                batcher.add(self._ids[rows], self._lengths[rows])
        return batcher

    def built(self) -> np.ndarray:
        """The features as a build has them, in the order of the rows."""
        return self.fill().launch().take()

    def build(self, chunks: int) -> Lap:
        """Consecutive chunks, as in a build.

        One more goes before them, and time counts from when its rows are there to when the last
        one's are: within it the device finds work at its beginning and at its end, as in a build.
        """
        arrived: list[float] = []

        def take(launched: LaunchedChunk) -> bool:
            launched.features[0][0].take()
            arrived.append(time.perf_counter())
            return True

        with Committer(take) as committer:
            for number in range(1 + chunks):
                feature = self.fill(number).launch()
                committer.committed()
                committer.write(LaunchedChunk(number, (), [[feature]], Need(lambda: True)))
            committer.committed()
        return Lap(chunks * self.rows, arrived[-1] - arrived[0])

    def in_order(self, planned: np.ndarray) -> np.ndarray:
        """Features in the order of the rows."""
        if hasattr(self.backbone, "image"):
            return planned
        found = np.empty_like(planned)
        found[[row for batch in self.plan for row in batch.rows]] = planned
        return found
