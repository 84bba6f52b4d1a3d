"""All backbones of a build: samples of a chunk go in, its features come out.

Texts are sorted by length, so none of a chunk can start before the last has come. Were all of them
launched then, the main loop would wait for most of them, and the producers, whom it gives work, for
the main loop. So they are launched one batch at a time while the next chunk's samples come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumers import backbones as registry
from consumers.batching import ImageBatcher, TextBatcher
from consumers.running import EndedChunk
from producers.pool import SampleViews


class Embedder:
    """Two chunks at a time: one whose samples come, one whose texts are being launched.

    Args:
        backbones: by feature, in the order of the job's text specifications.
        batch_sizes: by feature.
        parts: of the views. Rows of two parts never share a batch.
        chunk: the most samples of a chunk.
        multiple: see ``TextBatcher``.
    """

    def __init__(
        self,
        backbones: Mapping[str, Any],
        batch_sizes: Mapping[str, int],
        parts: Sequence[range],
        chunk: int,
        multiple: int,
    ) -> None:
        self._parts = parts
        self._images: list[list[ImageBatcher]] = []
        # Texts are added to the first of two sets of batchers, and launched from the second.
        self._texts: list[list[TextBatcher]] = []
        self._ending: list[list[TextBatcher]] = []
        self._ended: list[list[EndedChunk]] = []
        for name, backbone in backbones.items():
            batch, rows = batch_sizes[name], [chunk * len(part) for part in parts]
            if registry.modality_of(backbone) == "image":
                self._images.append([ImageBatcher(backbone, batch, n) for n in rows])
            else:
                for sets in (self._texts, self._ending):
                    sets.append([TextBatcher(backbone, batch, n, multiple) for n in rows])

    def add(self, views: SampleViews) -> None:
        """Adds one sample, whose arrays may be reused when this returns.

        Raises:
            BackboneError: a batch of images failed.
        """
        for images in self._images:
            spec = images[0].backbone.image
            clean, augmented = views.arrays.clean[spec], views.arrays.augmented[spec.size]
            for part, batcher in zip(self._parts, images, strict=True):
                first = clean if part.start == 0 else augmented[part.start - 1]
                batcher.add(first, augmented[part.start : part.stop - 1])
        for k, texts in enumerate(self._texts):
            for part, text_batcher in zip(self._parts, texts, strict=True):
                rows = slice(part.start, part.stop)
                text_batcher.add(views.arrays.ids[k][rows], views.arrays.lengths[k][rows])

    def end(self) -> None:
        """Ends the samples of a chunk, whose texts are still to be launched; the next may begin.

        Raises:
            BackboneError: a batch of images failed.
        """
        self._ended = [[batcher.end() for batcher in images] for images in self._images]
        self._texts, self._ending = self._ending, self._texts

    @property
    def left(self) -> bool:
        """Whether a batch of the ended chunk's texts is not launched yet."""
        return any(batcher.left for texts in self._ending for batcher in texts)

    def launch(self, share: float = 1.0) -> bool:
        """Launches one batch of the ended chunk's texts, as ``TextBatcher.launch`` does."""
        return any(batcher.launch(share) for texts in self._ending for batcher in texts)

    def finish(self) -> list[list[EndedChunk]]:
        """Launches what is left of the ended chunk.

        Returns:
            Its features to come, per backbone the parts of the views. They must have been taken
            before the chunk after the next ends.

        Raises:
            BackboneError: a batch failed.
        """
        return self._ended + [[batcher.end() for batcher in texts] for texts in self._ending]
