"""All backbones of a build: samples of a chunk go in, its features come out.

A text's batch depends on all texts of its chunk, so they are embedded while the next chunk's
samples come, whenever no images wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumers.backbones import registry
from consumers.device.computing import ComputePool
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.engine.runner import Batcher, EndedChunk
from producers.pool import SampleViews


class Embedder:
    """Two chunks at a time: one whose samples come, and the one before, which is embedded.

    Args:
        backbones: by feature, in the order of the job's text specifications.
        batch_sizes: by feature.
        parts: of the views. Rows of two parts never share a batch.
        chunk: the most samples of a chunk.
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
        # Texts are added to the first of two sets of batchers, and embedded from the second.
        self._texts: list[list[TextBatcher]] = []
        self._ending: list[list[TextBatcher]] = []
        for name, backbone in backbones.items():
            batch, rows = batch_sizes[name], [chunk * len(part) for part in parts]
            if registry.modality_of(backbone) == "image":
                self._images.append([ImageBatcher(backbone, batch, n, pool) for n in rows])
            else:
                for sets in (self._texts, self._ending):
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

    def end(self) -> list[list[EndedChunk]]:
        """Ends the samples of a chunk; the next may begin once the chunk before was taken.

        Returns:
            Its features to come, per backbone the parts of the views.

        Raises:
            BackboneError: a batch failed.
        """
        ended = [[batcher.end() for batcher in parts] for parts in self._batchers()]
        self._texts, self._ending = self._ending, self._texts
        self._pool.end_chunk()
        return ended

    def discard(self) -> None:
        """Forgets the samples of a chunk that has not ended, and cancels its batches."""
        for parts in self._batchers():
            for batcher in parts:
                batcher.discard()

    def _batchers(self) -> list[Sequence[Batcher]]:
        """Those that samples are added to: per backbone the parts of the views."""
        return [*self._images, *self._texts]
