"""All backbones of a build: takes the samples of a chunk, and computes its features.

A text's batch depends on all texts of its chunk, so texts are embedded while the next chunk is
filled, whenever no images wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumers.backbones import registry
from consumers.device.computing import ComputePool
from consumers.engine.batcher import Batcher, LaunchedFeature
from consumers.engine.batching import ImageBatcher, TextBatcher
from producers.pool import SampleViews


class Embedder:
    """Embeds two chunks at a time: one is filled while the texts of the previous one are embedded.

    Args:
        backbones: the backbone of each feature, in the order of the job's text specifications.
        batch_sizes: the batch size of each feature, in rows.
        parts: ranges of the views. Rows of two parts never share a batch.
        chunk: maximum number of samples of a chunk.
        multiple: see ``TextBatcher``.
        pool: the threads that embed.
    """

    def __init__(
        self,
        backbones: Mapping[str, Any],
        batch_sizes: Mapping[str, int],
        parts: Sequence[range],
        chunk: int,
        multiple: int,
        pool: ComputePool,
    ) -> None:
        self._parts = parts
        self._pool = pool
        self._images: list[list[ImageBatcher]] = []
        # Texts are added to the first set of batchers, and embedded from the second.
        self._texts: list[list[TextBatcher]] = []
        self._launched: list[list[TextBatcher]] = []
        for name, backbone in backbones.items():
            batch, rows = batch_sizes[name], [chunk * len(part) for part in parts]
            if registry.modality_of(backbone) == "image":
                self._images.append([ImageBatcher(backbone, batch, n, pool) for n in rows])
            else:
                for sets in (self._texts, self._launched):
                    sets.append([TextBatcher(backbone, batch, n, pool, multiple) for n in rows])

    def add(self, views: SampleViews) -> None:
        """Adds one sample, whose arrays may be reused when this returns.

        Raises:
            BackboneError: a batch failed.
        """
        for images in self._images:
            for part, batcher in zip(self._parts, images, strict=True):
                batcher.add(*views.arrays.images(batcher.backbone.image, part))
        for k, texts in enumerate(self._texts):
            for part, text_batcher in zip(self._parts, texts, strict=True):
                text_batcher.add(*views.arrays.texts(k, part))

    def launch(self) -> list[list[LaunchedFeature]]:
        """Launches all batches of the chunk; the previous chunk must be taken before the next call.

        Returns:
            The chunk's features, which may not be computed yet: for each backbone the parts of the
            views.

        Raises:
            BackboneError: a batch failed.
        """
        launched = [[batcher.launch() for batcher in parts] for parts in self._batchers()]
        self._texts, self._launched = self._launched, self._texts
        self._pool.end_chunk()
        return launched

    def discard(self) -> None:
        """Discards the samples of a chunk that was not launched, and cancels its batches."""
        for parts in self._batchers():
            for batcher in parts:
                batcher.discard()

    def _batchers(self) -> list[Sequence[Batcher]]:
        """The batchers that samples are added to: for each backbone the parts of the views."""
        return [*self._images, *self._texts]
