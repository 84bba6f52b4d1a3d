"""Lightning, where it is installed: the one place that imports it.

Lightning imports torchvision. Importing this module first, as the datamodule does, makes that work
beside a CPU build of torch too, also where a script imports Lightning itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()


def lightning_module() -> Any:
    """Lightning under either of its names, or None."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return None


def combined_loader() -> Any:
    """Its class ``CombinedLoader``.

    Raises:
        ConfigError: it is not installed.
    """
    lightning = lightning_module()
    if lightning is None:
        raise ConfigError('Loaders need Lightning: pip install "manyviews[lightning]".')
    name = f"{lightning.__name__}.utilities.combined_loader"
    return import_module(name).CombinedLoader
