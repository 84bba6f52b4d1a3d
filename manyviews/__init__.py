"""Frozen-backbone features with many views of every sample: the public Python API.

Everything in ``__all__`` is imported when it is first used: ``import manyviews`` loads no library.

The packages ``featurestore``, ``producers`` and ``consumers`` are installed beside this one, under
names that another project may use as well. Python imports the first of a name that it finds, so
this package checks, before anything of them is imported, that they are its own.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumers.config import BuildConfig as BuildConfig
    from featurestore.datamodule import make_datamodule as make_datamodule
    from featurestore.errors import BackboneError as BackboneError
    from featurestore.errors import BadInputsError as BadInputsError
    from featurestore.errors import ChunkConflictError as ChunkConflictError
    from featurestore.errors import ConfigError as ConfigError
    from featurestore.errors import CorruptStoreError as CorruptStoreError
    from featurestore.errors import InputError as InputError
    from featurestore.errors import InterruptedBuildError as InterruptedBuildError
    from featurestore.errors import ManyViewsError as ManyViewsError
    from featurestore.errors import ManyViewsWarning as ManyViewsWarning
    from featurestore.errors import ProducerError as ProducerError
    from featurestore.errors import RecipeError as RecipeError
    from featurestore.errors import StorageError as StorageError
    from featurestore.errors import StorageFullError as StorageFullError
    from featurestore.errors import StoreLockedError as StoreLockedError
    from featurestore.errors import StoreMismatchError as StoreMismatchError
    from featurestore.errors import UnsyncedFolderWarning as UnsyncedFolderWarning
    from featurestore.errors import WorkerError as WorkerError
    from featurestore.sampling.samplers import FeatureBatchSampler as FeatureBatchSampler
    from featurestore.sampling.sharding import Shard as Shard
    from featurestore.sampling.sharding import Shuffle as Shuffle
    from featurestore.storage.store import FeatureStore as FeatureStore
    from featurestore.training.dataset import FeatureDataset as FeatureDataset
    from featurestore.training.device import DeviceBatches as DeviceBatches
    from manyviews.api import build as build
    from manyviews.api import check as check
    from manyviews.api import export as export
    from manyviews.api import materialize as materialize
    from manyviews.api import probe as probe
    from manyviews.api import report as report
    from manyviews.api import status as status
    from manyviews.api import verify as verify
    from manyviews.operations.labels import labels as labels
    from manyviews.operations.replay.parameters import view_parameters as view_parameters
    from producers.sources.collection import CollectionConfig as CollectionConfig

__all__ = [
    "BackboneError",
    "BadInputsError",
    "BuildConfig",
    "ChunkConflictError",
    "CollectionConfig",
    "ConfigError",
    "CorruptStoreError",
    "DeviceBatches",
    "FeatureBatchSampler",
    "FeatureDataset",
    "FeatureStore",
    "InputError",
    "InterruptedBuildError",
    "ManyViewsError",
    "ManyViewsWarning",
    "ProducerError",
    "RecipeError",
    "Shard",
    "Shuffle",
    "StorageError",
    "StorageFullError",
    "StoreLockedError",
    "StoreMismatchError",
    "UnsyncedFolderWarning",
    "WorkerError",
    "__version__",
    "build",
    "check",
    "export",
    "labels",
    "make_datamodule",
    "materialize",
    "probe",
    "report",
    "status",
    "verify",
    "view_parameters",
]

_HOMES = {
    **{name: "featurestore.errors" for name in __all__ if name.endswith(("Error", "Warning"))},
    # Loads them lazily as well, and is the only module that knows their rooms.
    **dict.fromkeys(
        (
            *("DeviceBatches", "FeatureBatchSampler", "FeatureDataset", "FeatureStore"),
            *("Shard", "Shuffle", "__version__"),
        ),
        "featurestore",
    ),
    **dict.fromkeys(
        (
            *("build", "check", "export", "materialize"),
            *("probe", "report", "status", "verify"),
        ),
        "manyviews.api",
    ),
    "BuildConfig": "consumers.config",
    "CollectionConfig": "producers.sources.collection",
    "labels": "manyviews.operations.labels",
    "make_datamodule": "featurestore.datamodule",
    "view_parameters": "manyviews.operations.replay.parameters",
}

_SIBLINGS = ("featurestore", "producers", "consumers")


def _check_siblings() -> None:
    """Finds the other packages without importing them.

    Raises:
        ImportError: Python would import one of them from another folder, or it is missing.
    """
    home = Path(__file__).resolve().parent.parent
    for name in _SIBLINGS:
        places = _places(name)
        if not places:
            raise ImportError(
                f"manyviews lies in {home}, but its package {name!r} is missing.\n"
                "Install manyviews again.",
                name=name,
            )
        if home / name not in places:
            raise ImportError(
                f"manyviews needs its own package {name!r} in {home}, but Python finds another "
                f"one:\n{places[0]}\n"
                "Remove or rename that one, take its folder off PYTHONPATH, or start Python in "
                "another folder.",
                name=name,
                path=str(places[0]),
            )


def _places(name: str) -> list[Path]:
    """The folders of a package, or the file of a module; none where there is no such name."""
    if name in sys.modules and sys.modules[name].__spec__ is None:
        spec: ModuleSpec | None = None  # find_spec refuses such a module
    else:
        spec = find_spec(name)
    if spec is None:
        return []
    found = spec.submodule_search_locations or [spec.origin or name]
    return [Path(place).resolve() for place in found]


_check_siblings()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
