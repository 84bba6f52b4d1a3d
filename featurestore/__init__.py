"""The feature store: layout, commits, moments, lazy training reads, and the paper's files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.dataset import FeatureDataset as FeatureDataset
    from featurestore.store import FeatureStore as FeatureStore

__all__ = ["FeatureDataset", "FeatureStore", "__version__"]

__version__ = "0.1.0"

_HOMES = {"FeatureDataset": "featurestore.dataset", "FeatureStore": "featurestore.store"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
