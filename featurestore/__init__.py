"""The feature store: layout, commits, moments, lazy training reads, and the paper's files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.dataset import FeatureDataset as FeatureDataset
    from featurestore.device import DeviceBatches as DeviceBatches
    from featurestore.resident import Residency as Residency
    from featurestore.resident import ResidentFeatures as ResidentFeatures
    from featurestore.samplers import FeatureBatchSampler as FeatureBatchSampler
    from featurestore.sharding import Shard as Shard
    from featurestore.sharding import Shuffle as Shuffle
    from featurestore.store import FeatureStore as FeatureStore

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
    "DeviceBatches": "featurestore.device",
    "FeatureBatchSampler": "featurestore.samplers",
    "FeatureDataset": "featurestore.dataset",
    "FeatureStore": "featurestore.store",
    "Residency": "featurestore.resident",
    "ResidentFeatures": "featurestore.resident",
    "Shard": "featurestore.sharding",
    "Shuffle": "featurestore.sharding",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
