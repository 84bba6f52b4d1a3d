"""Which part of a store is measured: whole chunks, so that each is read and checked once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consumers.backbones.registry import REGISTRY
from featurestore.records import Modality
from featurestore.storage.store import FeatureStore

SAMPLES = 2048


@dataclass(frozen=True, slots=True)
class Sampled:
    """The samples that the expensive parts are measured on.

    Attributes:
        chunks: the chunks that are read, in order.
        samples: int64 [S], their samples without those that have a bad input, in order.
        left_out: how many of the chunks' samples have one.
    """

    chunks: tuple[int, ...]
    samples: npt.NDArray[np.int64]
    left_out: int

    def of(self, store: FeatureStore, chunk: int) -> npt.NDArray[np.int64]:
        """Positions in a chunk of those of its samples that are measured."""
        indices = store.spec.samples_of(chunk)
        low, high = np.searchsorted(self.samples, [indices.start, indices.stop])
        return self.samples[low:high] - indices.start


def choose(store: FeatureStore, most: int = SAMPLES) -> Sampled:
    """Chooses committed chunks, evenly spread, that hold at most ``most`` samples; one at least."""
    committed = [entry.chunk for entry in store.ledger.entries]
    wanted = max(1, most // store.spec.chunk)
    if len(committed) > wanted:
        at = np.arange(wanted) * len(committed) // wanted
        committed = [committed[i] for i in at]
    records = [record for chunk in committed for record in store.ledger[chunk].samples]
    sound = [record.index for record in records if not record.bad]
    return Sampled(tuple(committed), np.array(sound, np.int64), len(records) - len(sound))


def modality(store: FeatureStore, feature: str) -> Modality | None:
    """What a feature was made of; None where neither the name nor the fingerprint tells."""
    if feature in REGISTRY:
        return REGISTRY[feature].modality
    if f"{feature}.size" in store.fingerprint:
        return "image"
    return "text" if f"{feature}.max_length" in store.fingerprint else None
