"""Imports Lightning if it is installed; the only module that does.

Lightning imports torchvision. Importing this module first, as the datamodule does, makes that
import work with a CPU build of torch too, also in a script that imports Lightning itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()


def lightning_module() -> Any:
    """Lightning, under either of its package names; None if it is not installed."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return None


def combined_loader() -> Any:
    """Lightning's class ``CombinedLoader``.

    Raises:
        ConfigError: Lightning is not installed.
    """
    lightning = lightning_module()
    if lightning is None:
        raise ConfigError('Loaders need Lightning: pip install "manyviews[lightning]".')
    name = f"{lightning.__name__}.utilities.combined_loader"
    return import_module(name).CombinedLoader
