"""Choose the part of a store to measure: whole chunks, so that each is read and verified once."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        samples: int64 [S], the samples of these chunks without a bad input, in order.
        left_out: number of samples of these chunks with a bad input.
    """

    chunks: tuple[int, ...]
    samples: npt.NDArray[np.int64]
    left_out: int

    def of(self, store: FeatureStore, chunk: int) -> npt.NDArray[np.int64]:
        """Positions of the measured samples within a chunk, int64."""
        indices = store.spec.samples_of(chunk)
        low, high = np.searchsorted(self.samples, [indices.start, indices.stop])
        return self.samples[low:high] - indices.start

    def having(self, store: FeatureStore, feature: str) -> Sampled:
        """Keeps the measured samples with the feature's input: rows without an input are zeros."""
        return replace(self, samples=self.samples[store.present(feature)[self.samples]])


def choose(store: FeatureStore, most: int = SAMPLES) -> Sampled:
    """Chooses evenly spaced committed chunks with at most ``most`` samples, at least one chunk."""
    committed = [entry.chunk for entry in store.ledger.entries]
    wanted = max(1, most // store.spec.chunk)
    if len(committed) > wanted:
        at = np.arange(wanted) * len(committed) // wanted
        committed = [committed[i] for i in at]
    records = [record for chunk in committed for record in store.ledger[chunk].samples]
    sound = [record.index for record in records if not record.bad]
    return Sampled(tuple(committed), np.array(sound, np.int64), len(records) - len(sound))


def modality(store: FeatureStore, feature: str) -> Modality | None:
    """The modality of a feature; None if neither its name nor the fingerprint determines it."""
    if feature in store.spec.modalities:
        return store.spec.modalities[feature]
    if feature in REGISTRY:
        return REGISTRY[feature].modality
    if f"{feature}.size" in store.fingerprint:
        return "image"
    return "text" if f"{feature}.max_length" in store.fingerprint else None
