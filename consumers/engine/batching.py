"""The batchers, which run a chunk's rows in the batches of its plan.

The row of a view in its chunk is ``sample * views + view``. Batches are computed by any free thread
of a ``ComputePool``. Nothing here waits for results: ``launch`` returns before the features are
computed.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones.protocol import ImageBackbone, TextBackbone
from consumers.device.computing import ComputePool, Order
from consumers.engine.batch_plan import SHORT, IntArray, TextBatch, own_multiple, text_plan
from consumers.engine.batcher import Batcher
from consumers.engine.staging import Stage


class ImageBatcher(Batcher):
    """Embeds images chunk by chunk, in the batches of ``image_plan``.

    A batch is launched as soon as it is full, while the producers compute the next sample; the last
    batch of a chunk is filled up with black images.

    Args:
        backbone: an image backbone.
        batch_size: number of images per forward pass.
        chunk_rows: maximum number of rows of a chunk.
        pool: the threads that embed.
    """

    def __init__(
        self, backbone: ImageBackbone, batch_size: int, chunk_rows: int, pool: ComputePool
    ) -> None:
        self.backbone = backbone
        side = backbone.image.size
        self._shape = (batch_size, side, side, 3)
        self._stage: Stage | None = None
        self._filled = 0
        super().__init__(
            backbone,
            batch_size,
            chunk_rows,
            pool,
            order=Order.IMAGES,
            shape=self._shape,
            dtype=torch.uint8,
            buffers=2,  # one chunk is embedded while the previous one is written
        )

    def add(self, clean: npt.NDArray[np.uint8], augmented: npt.NDArray[np.uint8]) -> None:
        """Copy one sample's views into the chunk's batches, after waiting for a free buffer.

        The caller may reuse the arrays when this returns.

        Args:
            clean: uint8 ``[S, S, 3]``, view 0 as this backbone's processor produces it; S is the
                side in pixels.
            augmented: uint8 ``[V - 1, S, S, 3]``, the other of the sample's V views.

        Raises:
            BackboneError: a batch failed, this one or an earlier one.
            ValueError: another shape or dtype, or more rows than a chunk has.
        """
        image = self._shape[1:]
        for pixels, shape in ((clean, image), (augmented, (len(augmented), *image))):
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError(f"expected uint8 {shape}, got {pixels.dtype} {pixels.shape}")
        self._admit(1 + len(augmented))
        self._put(clean[None])
        self._put(augmented)

    def _reset(self) -> None:
        super()._reset()
        if self._stage is not None:
            self._staging.give_back(self._stage)
        self._stage, self._filled = None, 0

    def _put(self, pixels: npt.NDArray[np.uint8]) -> None:
        start = 0
        while start < len(pixels):
            if self._stage is None:
                self._stage = self._staging.take()
            take = min(self._batch - self._filled, len(pixels) - start)
            rows = slice(self._filled, self._filled + take)
            self._stage.array[rows] = pixels[start : start + take]
            start += take
            self._filled += take
            if self._filled == self._batch:
                self._launch_batch(self._stage)

    def _launch_batch(self, stage: Stage) -> None:
        batch = self._submit(
            self._batch, lambda host, first: self._runner.run(stage, self._shape, host, first)
        )
        batch.add_done_callback(lambda _: self._staging.give_back(stage))
        self._stage, self._filled = None, 0

    def _launch_rest(self) -> slice:
        if self._stage is not None:
            self._stage.array[self._filled :] = 0
            self._launch_batch(self._stage)
        return slice(None)

    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        return self.backbone.embed(sent)


class TextBatcher(Batcher):
    """Embeds texts chunk by chunk, in the batches of ``text_plan``.

    Sorting by length needs the whole chunk, so batches are launched when the chunk is full.

    Args:
        backbone: a text backbone.
        batch_size: number of texts of the maximum length per forward pass. A batch of shorter texts
            holds as many as have the same number of tokens, up to eight times ``batch_size``.
        chunk_rows: maximum number of rows of a chunk.
        pool: the threads that embed.
        multiple: the padded length of a batch is a multiple of it; 0 chooses by the device.
    """

    def __init__(
        self,
        backbone: TextBackbone,
        batch_size: int,
        chunk_rows: int,
        pool: ComputePool,
        multiple: int = 0,
    ) -> None:
        self.backbone = backbone
        limit = backbone.text.max_length
        self._tokens, self._most = batch_size * limit, batch_size * SHORT
        self._multiple = multiple or own_multiple(backbone.device.type)
        super().__init__(
            backbone,
            batch_size,
            chunk_rows,
            pool,
            order=Order.TEXTS,
            # One more column: a text's length is copied to the device with its ids, behind them.
            shape=(self._tokens + self._most,),
            dtype=torch.int32,
            buffers=1,
        )
        self._ids = np.zeros((chunk_rows, limit), np.int32)
        self._lengths = np.zeros(chunk_rows, np.int32)

    def add(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> None:
        """Add one sample's views. The arrays may be reused when this returns.

        Args:
            ids: int32 ``[V, max_length]``, token ids; those behind a text's length are not read.
            lengths: int32 ``[V]``, number of tokens of each text, 1 to ``max_length``.

        Raises:
            ValueError: another shape or dtype, or more rows than a chunk has.
        """
        expected = (len(lengths), self._ids.shape[1])
        if ids.shape != expected or ids.dtype != np.int32 or lengths.shape != expected[:1]:
            raise ValueError(f"expected int32 {expected}, got {ids.dtype} {ids.shape}")
        if lengths.min() < 1 or lengths.max() > expected[1]:
            raise ValueError(f"lengths {lengths.min()} to {lengths.max()} not in 1..{expected[1]}")
        rows = self._admit(len(lengths))
        self._ids[rows], self._lengths[rows] = ids, lengths

    def plan(self, lengths: IntArray) -> list[TextBatch]:
        """The batches of a chunk whose texts have these lengths."""
        limit = self._ids.shape[1]
        return text_plan(lengths, self._tokens, self._most, limit, self._multiple)

    def _launch_rest(self) -> IntArray:
        plan = self.plan(self._lengths[: self._rows])
        for batch in plan:
            self._submit(len(batch.rows), partial(self._run_batch, batch))
        return np.array([row for batch in plan for row in batch.rows])

    def _run_batch(self, batch: TextBatch, host: torch.Tensor, first: int) -> None:
        rows = np.array(batch.rows)
        shape = (len(rows), batch.length + 1)
        stage = self._staging.take()
        try:
            filled = stage.array[: shape[0] * shape[1]].reshape(shape)
            filled[:, :-1] = self._ids[rows, : batch.length]
            filled[:, -1] = self._lengths[rows]
            self._runner.run(stage, shape, host, first)
        finally:
            self._staging.give_back(stage)

    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        ids, lengths = sent[:, :-1].long(), sent[:, -1:]
        mask = torch.arange(ids.shape[1], device=sent.device) < lengths  # [B, L]
        # The ids behind a text's end do not matter to the model, but they must be the same in every
        # run: the batch must depend on its texts alone.
        return self.backbone.embed(ids.masked_fill(~mask, self.backbone.text.pad_id), mask.long())
