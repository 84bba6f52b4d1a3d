"""The result of a build, and what its events say about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.records import BadInput, SampleRecord
from featurestore.storage.store import FeatureStore


@dataclass(slots=True)
class BuildReport:
    """The result of a build.

    Attributes:
        store: path of the store.
        samples: number of samples in the store.
        views: number of views per sample.
        built: number of samples built by this run.
        seconds: wall-clock time of building them, in seconds.
        waited_s: part of ``seconds`` in which the backbones waited for producers; on a CPU, the
            average over the compute threads.
        bad: every input of the store that was replaced by a placeholder.
        truncated: number of views of this run that were cut to the tokenizer's maximum length, by
            text feature.
        replaced: number of producers that died and were replaced, by cause of death.
        restarted: number of worker processes that died and were started again, by cause of death;
            for a build on several ``devices``, or on Ray.
        absent: number of samples of the store without an image, or without a text, by modality.
    """

    store: Path
    samples: int
    views: int
    built: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    bad: list[BadInput] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    restarted: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)

    def chunk_facts(self, records: Sequence[SampleRecord]) -> dict[str, Any]:
        """What the event of a committed chunk says, whose samples have these ``records``."""
        return {
            "samples": len(records),
            "built": self.built,
            "seconds": round(self.seconds, 3),
            "waited_s": round(self.waited_s, 3),
            "truncated": dict(self.truncated),
            "replaced": dict(self.replaced),
            "bad": [[b.index, b.modality, b.reason, b.detail] for r in records for b in r.bad],
        }

    def facts(self) -> dict[str, Any]:
        """What the event of a finished build says."""
        return {
            "built": self.built,
            "seconds": round(self.seconds, 3),
            "waited_s": round(self.waited_s, 3),
            "bad": len(self.bad),
            "truncated": dict(self.truncated),
            "replaced": dict(self.replaced),
            "absent": dict(self.absent),
        }


def absent_in(store: FeatureStore) -> Counter[str]:
    """How many samples lack an input that features are computed from."""
    used = set(store.spec.modalities.values())
    return Counter[str](
        modality
        for entry in store.ledger.entries
        for record in entry.samples
        for modality in used
        if not record.has(modality)
    )
