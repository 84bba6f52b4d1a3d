"""Backbones that a configuration declares: which adapters there are, and loading by one of them.

An adapter is a function that takes a ``BackboneRequest`` and returns a ``Backbone``. There are
those of ``ADAPTERS``, those that an installed package offers as entry points of the group
``manyviews.backbones``, and any ``module:function`` that can be imported. Importing this module
loads neither torch nor a model library.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any, cast

from consumers.backbones.config import BackboneConfig
from consumers.backbones.registry import Backbone, BackboneRequest, modality_of, quiet_transformers
from consumers.device.devices import make_reproducible, resolve_dtype
from featurestore.errors import ConfigError, ManyViewsError
from featurestore.storage.fingerprint import Fingerprint
from featurestore.wording import one_line

ENTRY_POINTS = "manyviews.backbones"
_BATCH_CPU, _BATCH_CUDA = 16, 64
_RESERVED = ("model", "weights_sha256", "dtype", "batch_size", "adapter")

Loader = Callable[[BackboneRequest], Backbone]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One of our adapters, as far as it is known without its library.

    Attributes:
        loader: ``module:function``, imported when a backbone is loaded.
        takes: the fields of ``BackboneConfig`` that mean something to it, besides the model.
        poolings: the values that ``pooling`` may have.
        library: the distribution that it needs beyond those that are always installed.
        helpers: distributions that come with it, and whose version can change numbers as well.
        extra: the extra that installs it.
        auto_dtype: what ``--dtype auto`` means for it; ``auto`` is bfloat16 on a GPU.
    """

    loader: str
    takes: tuple[str, ...]
    poolings: tuple[str, ...] = ()
    library: str = ""
    helpers: tuple[str, ...] = ()
    extra: str = ""
    auto_dtype: str = "auto"


ADAPTERS: Mapping[str, Adapter] = {
    "transformers-image": Adapter(
        "consumers.backbones.adapters.transformers_image:load",
        ("pooling", "size"),
        ("projection", "pooler", "cls", "mean"),
    ),
    "transformers-text": Adapter(
        "consumers.backbones.adapters.transformers_text:load",
        ("pooling", "max_length"),
        ("projection", "pooler", "cls", "mean", "last"),
    ),
    "sentence-transformers": Adapter(
        "consumers.backbones.sentence:load_declared", ("max_length",), auto_dtype="float32"
    ),
    "timm": Adapter(
        "consumers.backbones.adapters.timm_image:load",
        ("pooling", "size"),
        ("pooler", "cls", "mean"),
        library="timm",
        extra="timm",
    ),
    "open-clip-image": Adapter(
        "consumers.backbones.adapters.open_clip:load_image",
        ("size",),
        library="open_clip_torch",
        extra="open-clip",
    ),
    "open-clip-text": Adapter(
        "consumers.backbones.adapters.open_clip:load_text",
        (),
        library="open_clip_torch",
        helpers=("ftfy",),
        extra="open-clip",
    ),
}


def batch_size(device: str) -> int:
    """Rows per forward pass where nobody says it, on a device as ``resolve_device`` returns it."""
    return _BATCH_CUDA if device.startswith("cuda") else _BATCH_CPU


def libraries(adapter: str) -> set[str]:
    """The distributions whose versions can change an adapter's numbers, of its own alone."""
    if adapter not in ADAPTERS:
        return set()
    return {ADAPTERS[adapter].library, *ADAPTERS[adapter].helpers} - {""}


def check(feature: str, config: BackboneConfig) -> None:
    """Refuses what cannot be loaded, as far as that is known without loading it.

    Raises:
        ConfigError: an unknown adapter or pooling, a setting that the adapter does not take, no
            model, or a library that is not installed.
    """
    adapter = ADAPTERS.get(config.adapter)
    if adapter is None:
        if ":" not in config.adapter and config.adapter not in _installed():
            known = ", ".join([*ADAPTERS, *_installed()])
            raise ConfigError(
                f"[backbones.{feature}] has the unknown adapter {config.adapter!r}.\n"
                f"There are: {known}, and module:function for your own."
            )
        return
    if not config.model:
        raise ConfigError(f"[backbones.{feature}] names no model: a hub id or a local folder.")
    for name in ("pooling", "size", "max_length"):
        if getattr(config, name) and name not in adapter.takes:
            takes = ", ".join(("model", *adapter.takes, "batch_size"))
            raise ConfigError(
                f"[backbones.{feature}] sets {name}, which {config.adapter} does not take.\n"
                f"It takes: {takes}."
            )
    if config.pooling and config.pooling not in adapter.poolings:
        raise ConfigError(
            f"[backbones.{feature}] has the unknown pooling {config.pooling!r}.\n"
            f"{config.adapter} has: {', '.join(adapter.poolings)}."
        )
    if adapter.library:
        try:
            version(adapter.library)
        except PackageNotFoundError:
            raise ConfigError(
                f"[backbones.{feature}]: the adapter {config.adapter} needs {adapter.library}, "
                f"which is not installed.\nInstall it: pip install 'manyviews[{adapter.extra}]'"
            ) from None


def load(feature: str, config: BackboneConfig, device: str, dtype: str) -> Backbone:
    """Loads a declared backbone, ready to embed, and tries it out.

    Args:
        feature: its name.
        config: its table.
        device: as ``resolve_device`` returns it.
        dtype: as ``resolve_dtype`` returns it, or ``auto``.

    Raises:
        ConfigError: what :func:`check` raises; or the checkpoint is missing, damaged or of another
            kind; or an adapter of one's own returned something else than a backbone.
    """
    check(feature, config)
    adapter = ADAPTERS.get(config.adapter)
    if adapter is not None and dtype == "auto":
        dtype = adapter.auto_dtype
    dtype = resolve_dtype(dtype, device, feature)
    loader = _loader(feature, config.adapter)
    quiet_transformers()
    make_reproducible()
    import torch

    from consumers.backbones.selftest import check_backbone

    request = BackboneRequest(
        feature=feature,
        model=config.model,
        device=torch.device(device),
        dtype=getattr(torch, dtype),
        pooling=config.pooling,
        size=config.size,
        max_length=config.max_length,
    )
    try:
        backbone = loader(request)
    except (ManyViewsError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"[backbones.{feature}]: the adapter {config.adapter} could not load "
            f"{config.model or 'its model'}:\n  {type(error).__name__}: {one_line(error)}\n"
            "Name another model, or use --debug to see where it happened."
        ) from error
    check_backbone(request, config.adapter, backbone)
    return backbone


def settings(feature: str, config: BackboneConfig, backbone: Backbone) -> Fingerprint:
    """The fingerprint's fields that only declared backbones have: ``<feature>.<setting>``.

    Raises:
        ConfigError: a setting has a name or a value that a fingerprint cannot have.
    """
    found: dict[str, Any] = dict(getattr(backbone, "settings", {}))
    if config.adapter not in ADAPTERS:
        # What ours make of their settings and checkpoint is in the fields that they give. Of
        # another's only this is known: what it was asked for, and what producers make for it.
        asked = {name: getattr(config, name) for name in ("pooling", "size", "max_length")}
        found = {**asked, "input_sha256": _input_sha256(backbone), **found}
    side = backbone.image.size if modality_of(backbone) == "image" else 0  # type: ignore[union-attr]
    found |= {"size": side} if side else {"max_length": backbone.text.max_length}  # type: ignore[union-attr]
    for name, value in found.items():
        if name in _RESERVED or "." in name or type(value) not in (str, int):
            raise ConfigError(
                f"{feature}: the backbone's setting {name} = {value!r} cannot be kept.\n"
                f"Settings are str or int, without a dot, and none of {', '.join(_RESERVED)}."
            )
    return {f"{feature}.{name}": value for name, value in found.items()} | {
        f"{feature}.adapter": config.adapter
    }


def _input_sha256(backbone: Backbone) -> str:
    """Hex SHA-256 of the specification of what a backbone takes: its tokenizer, or its resize."""
    spec = backbone.image if modality_of(backbone) == "image" else backbone.text  # type: ignore[union-attr]
    # These two have fields of their own.
    rest = {k: v for k, v in asdict(spec).items() if k not in ("size", "max_length")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def _installed() -> list[str]:
    """Names of the adapters that installed packages offer."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - ADAPTERS.keys())


def _loader(feature: str, name: str) -> Loader:
    """The function that an adapter's name stands for."""
    if name in ADAPTERS:
        target = ADAPTERS[name].loader
    elif ":" in name:
        target = name
    else:
        (target, *_) = [p.value for p in entry_points(group=ENTRY_POINTS) if p.name == name]
    module, _, function = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"[backbones.{feature}]: the adapter {name} cannot be imported: {error}.\n"
            "Its module must be on the Python path: install it, or set PYTHONPATH."
        ) from error
    return cast("Loader", found)
