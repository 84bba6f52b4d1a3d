"""The committed part of a store, or of an extension of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featurestore.records import Modality
from featurestore.storage.store import FeatureStore


@dataclass(frozen=True, slots=True)
class Part:
    """The committed part of a store, or of an extension of it.

    Attributes:
        samples: total number of samples.
        views: number of views per sample.
        dims: dimension of each feature.
        done: number of committed samples.
        chunks: total number of chunks.
        committed: number of committed chunks.
        recorded: number of chunks that have a record: a complete store without records is sealed.
        bad: number of bad inputs of the committed samples, by modality and reason.
        fingerprint: the settings that affect the numbers of the store.
        absent: number of committed samples without an input that a feature uses, by modality.
    """

    samples: int
    views: int
    dims: Mapping[str, int]
    done: int
    chunks: int
    committed: int
    recorded: int
    bad: Mapping[str, int]
    fingerprint: Mapping[str, str | int]
    absent: Mapping[Modality, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: FeatureStore) -> Part:
        """Counts the committed part of an open store."""
        bad = Counter(f"{b.modality} {b.reason}" for b in store.bad_inputs)
        spec = store.spec
        return cls(
            spec.samples,
            spec.views,
            dict(spec.dims),
            len(store.records),
            spec.chunks,
            len(store.ledger),
            len(store.ledger.recorded),
            dict(bad.most_common()),
            store.fingerprint,
            store.absent,
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk is committed."""
        return self.committed == self.chunks

    @property
    def sealed(self) -> bool:
        """Whether the store is complete and its ledger alone names all chunks."""
        return self.complete and not self.recorded

    def facts(self) -> dict[str, Any]:
        """The size of an addition as plain values for ``--json``."""
        return {
            "samples": self.samples,
            "views": self.views,
            "dims": dict(self.dims),
            "done": self.done,
            "chunks": self.chunks,
            "committed": self.committed,
        }
