"""Which views of a chunk share a forward pass, and the batchers that run it so.

The plan is a pure function of the chunk. The same text in another batch has other last bits, so a
byte-identical rebuild needs the same batches: they never span chunks and never depend on the order
of arrival. A chunk's row is ``sample * views + view``.

Batches are computed by a ``ComputePool``, whichever thread is free. Nothing here waits for results:
``end`` returns a chunk whose features are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from consumers.backbones import ImageBackbone, TextBackbone
from consumers.computing import ComputePool, Order
from consumers.running import Batcher, IntArray
from consumers.staging import Stage

# Texts that may take the place of one of full length. More would gain little where a text has 64
# tokens or fewer of 512, and the memory for what a model keeps per text is bounded.
_SHORT = 8
# On a GPU a text's tokens are rounded up to a multiple: matrix products and attention read 16 bytes
# at once, and where a length is no multiple, attention copies its mask to one that is.
_MULTIPLE = 8
# Raised whenever other rows or lengths share a forward pass, or a GPU computes one in another way,
# so that no store mixes two.
_PLANS = {"tokens-1": 1, f"tokens-2-by-{_MULTIPLE}": _MULTIPLE}


@dataclass(frozen=True, slots=True)
class TextBatch:
    """One forward pass over texts.

    Attributes:
        rows: the chunk's rows in it.
        length: tokens that each text is padded to.
    """

    rows: tuple[int, ...]
    length: int


def batch_plan(device: str, begun: str = "") -> str:
    """The name of the plan that batches follow, as the fingerprint has it.

    Args:
        device: ``cpu`` or ``cuda:N``.
        begun: the plan that a store was begun with, on whatever device; it is followed if it can.
    """
    if begun in _PLANS:
        return begun
    own = _own_multiple(torch.device(device))
    return next(name for name, multiple in _PLANS.items() if multiple == own)


def plan_multiple(plan: str) -> int:
    """The multiple that a plan of ``batch_plan`` rounds lengths up to."""
    return _PLANS[plan]


def _own_multiple(device: torch.device) -> int:
    return _MULTIPLE if device.type == "cuda" else 1


def image_plan(rows: int, batch: int) -> list[slice]:
    """Batches of a chunk's images: consecutive rows in order, the last one shorter."""
    return [slice(start, min(start + batch, rows)) for start in range(0, rows, batch)]


def text_plan(
    lengths: IntArray, tokens: int, most: int, limit: int, multiple: int = 1
) -> list[TextBatch]:
    """Batches of a chunk's texts: longest first, equal lengths in row order.

    Each takes as many as may be padded to its longest, so that short texts keep a device as busy as
    long ones do.

    Args:
        lengths: tokens of each row, special ones included.
        tokens: of a forward pass, padding included; no less than ``limit``.
        most: texts of a forward pass.
        limit: the most tokens of a text.
        multiple: of which a padded length is one, unless ``limit`` comes before.
    """
    # Stable, so that equal lengths stay in row order; int64, since unsigned has no negative.
    order = np.argsort(-lengths.astype(np.int64), kind="stable").tolist()
    batches = []
    while order:
        length = min(-(-int(lengths[order[0]]) // multiple) * multiple, limit)
        count = min(tokens // length, most)
        batches.append(TextBatch(tuple(order[:count]), length))
        order = order[count:]
    return batches


class ImageBatcher(Batcher):
    """Embeds one chunk's images after the other, in the batches of ``image_plan``.

    A batch is submitted as soon as it is full, while the producers make the next sample; the last
    one is filled up with black images.

    Args:
        backbone: an image backbone.
        batch_size: images per forward pass.
        chunk_rows: the most rows of a chunk.
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
            buffers=2,  # one chunk is embedded while the one before is written
        )

    def add(self, clean: npt.NDArray[np.uint8], augmented: npt.NDArray[np.uint8]) -> None:
        """Add one sample's views; waits for a buffer to put them in. The arrays may be reused then.

        Args:
            clean: uint8 ``[S, S, 3]``, view 0 as this backbone's processor makes it.
            augmented: uint8 ``[V - 1, S, S, 3]``, the other views.

        Raises:
            BackboneError: a batch failed.
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
                self._launch(self._stage)

    def _launch(self, stage: Stage) -> None:
        batch = self._submit(
            self._batch, lambda host, first: self._runner.run(stage, self._shape, host, first)
        )
        batch.add_done_callback(lambda _: self._staging.give_back(stage))
        self._stage, self._filled = None, 0

    def _flush(self) -> slice:
        if self._stage is not None:
            self._stage.array[self._filled :] = 0
            self._launch(self._stage)
        return slice(None)

    def _forward(self, sent: torch.Tensor) -> torch.Tensor:
        return self.backbone.embed(sent)


class TextBatcher(Batcher):
    """Embeds one chunk's texts, in the batches of ``text_plan``.

    Sorting by length needs the whole chunk, so batches are submitted at its end.

    Args:
        backbone: a text backbone.
        batch_size: texts of the full length per forward pass; of shorter ones as many as have as
            many tokens, up to eight times as many texts.
        chunk_rows: the most rows of a chunk.
        pool: the threads that embed.
        multiple: of which a batch's length is one; the device's own by default.
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
        self._tokens, self._most = batch_size * limit, batch_size * _SHORT
        self._multiple = multiple or _own_multiple(backbone.device)
        super().__init__(
            backbone,
            batch_size,
            chunk_rows,
            pool,
            order=Order.TEXTS,
            # One more column: a text's length travels behind its ids, in the same copy.
            shape=(self._tokens + self._most,),
            dtype=torch.int32,
            buffers=1,
        )
        self._ids = np.zeros((chunk_rows, limit), np.int32)
        self._lengths = np.zeros(chunk_rows, np.int32)

    def add(self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> None:
        """Add one sample's views. The arrays may be reused when this returns.

        Args:
            ids: int32 ``[V, max_length]``; what lies behind a text's length is not read.
            lengths: int32 ``[V]``, 1 to ``max_length``.

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

    def _flush(self) -> IntArray:
        plan = self.plan(self._lengths[: self._rows])
        for batch in plan:
            self._submit(len(batch.rows), partial(self._launch, batch))
        return np.array([row for batch in plan for row in batch.rows])

    def _launch(self, batch: TextBatch, host: torch.Tensor, first: int) -> None:
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
        # Any id would do behind a text's end; one for all makes a batch depend on its texts alone.
        return self.backbone.embed(ids.masked_fill(~mask, self.backbone.text.pad_id), mask.long())
