"""The commit of a chunk: its features are taken, put together with the store's own, and written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consumers.backbones import registry
from consumers.engine.batcher import LaunchedFeature
from consumers.engine.committing import LaunchedChunk
from consumers.plan import Plan
from featurestore.errors import BackboneError
from featurestore.records import SampleRecord
from featurestore.samples import present_in
from featurestore.storage.writer import StoreWriter
from producers.sources.inputs import extend_cache, stat_of


class ChunkCommit:
    """Commits the chunks of a build.

    Args:
        plan: the build.
        writer: the store that the chunks are committed to.
        inputs_file: file that lists the inputs of committed chunks.
    """

    def __init__(self, plan: Plan, writer: StoreWriter, inputs_file: Path) -> None:
        self._plan, self._decided = plan, plan.decided
        self._wanted = plan.decided.wanted
        self._writer = writer
        self._inputs_file = inputs_file

    def __call__(self, launched: LaunchedChunk) -> bool:
        """Writes and commits one chunk, unless another worker has; runs in the committer's thread.

        Returns:
            Whether it did.

        Raises:
            BackboneError, StorageError, StoreMismatchError: the chunk is not committed.
            CancelledError: the build was stopped.
        """
        spec = self._writer.spec
        indices = spec.samples_of(launched.chunk)
        try:
            rows = {
                parts[0].feature: self._rows(launched.chunk, launched.records, parts)
                for parts in launched.features
            }
        except CancelledError:
            if not launched.need.is_left:
                raise
            for parts in launched.features:
                for part in parts:
                    part.leave()
            return False
        except BackboneError as e:
            e.name_chunk(launched.chunk)
            raise
        changed = dict(self._plan.changed)
        if self._wanted is not None:
            for record in launched.records:
                self._wanted.require_same_inputs(record)
            if self._wanted.kind == "views":
                changed = {**self._wanted.changed_before(launched.chunk), **changed}
        self._writer.commit_chunk(launched.chunk, rows, launched.records, changed)
        stats = {i: stat_of(self._decided.stats, i) for i in indices}
        extend_cache(self._inputs_file, stats)
        return True

    def _rows(
        self, chunk: int, records: Sequence[SampleRecord], parts: Sequence[LaunchedFeature]
    ) -> npt.NDArray[np.float32]:
        """A chunk's rows of one feature, float32 ``[n, V, D]``, including the store's own views.

        The rows of samples without the feature's input are zeros.
        """
        present = present_in(records, registry.modality_of(parts[0].backbone))
        samples = [record.index for record in compress(records, present)]
        rows = []
        for views, part in zip(self._plan.view_parts, parts, strict=True):
            taken = part.take(samples, views.start).reshape(
                len(samples), len(views), part.backbone.dim
            )
            if len(samples) < len(records):
                spread = np.zeros((len(records), *taken.shape[1:]), np.float32)
                spread[present] = taken
                taken = spread
            rows.append(taken)
        if self._wanted is not None and self._wanted.kind == "views":
            rows.insert(0, self._wanted.rows_before(parts[0].feature, chunk))
        return np.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
