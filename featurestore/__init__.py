"""The feature store: file layout, commits, moments, lazy reads for training, the paper's files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.sampling.samplers import FeatureBatchSampler as FeatureBatchSampler
    from featurestore.sampling.sharding import Shard as Shard
    from featurestore.sampling.sharding import Shuffle as Shuffle
    from featurestore.storage.store import FeatureStore as FeatureStore
    from featurestore.training.dataset import FeatureDataset as FeatureDataset
    from featurestore.training.device import DeviceBatches as DeviceBatches
    from featurestore.training.resident import Residency as Residency
    from featurestore.training.resident import ResidentFeatures as ResidentFeatures

__all__ = [
    "DeviceBatches",
    "FeatureBatchSampler",
    "FeatureDataset",
    "FeatureStore",
    "Residency",
    "ResidentFeatures",
    "Shard",
    "Shuffle",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "DeviceBatches": "featurestore.training.device",
    "FeatureBatchSampler": "featurestore.sampling.samplers",
    "FeatureDataset": "featurestore.training.dataset",
    "FeatureStore": "featurestore.storage.store",
    "Residency": "featurestore.training.resident",
    "ResidentFeatures": "featurestore.training.resident",
    "Shard": "featurestore.sampling.sharding",
    "Shuffle": "featurestore.sampling.sharding",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
