"""Custom backbones that a configuration declares, and the adapters that load them.

An adapter is a function that takes a ``BackboneRequest`` and returns a ``Backbone``: one of
``ADAPTERS``, an entry point of an installed package in the group ``manyviews.backbones``, or any
``module:function`` that can be imported. Importing this module loads neither torch nor a model
library.
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
from consumers.backbones.protocol import Backbone, BackboneRequest, modality_of
from consumers.backbones.registry import quiet_transformers
from consumers.device.devices import make_reproducible, resolve_dtype
from featurestore.errors import ConfigError, ManyViewsError
from featurestore.storage.fingerprint import Fingerprint
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import one_line

ENTRY_POINTS = "manyviews.backbones"
_BATCH_CPU, _BATCH_CUDA = 16, 64
_RESERVED = ("model", "weights_sha256", "dtype", "batch_size", "adapter")

Loader = Callable[[BackboneRequest], Backbone]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The facts of a built-in adapter that are known without its library.

    Attributes:
        loader: ``module:function``, imported when a backbone is loaded.
        takes: fields of ``BackboneConfig`` that it uses, besides the model.
        poolings: allowed values of ``pooling``.
        library: distribution that it needs beyond those that are always installed.
        helpers: further distributions whose version can change features.
        extra: name of the extra that installs the library.
        auto_dtype: dtype that ``--dtype auto`` selects; ``auto`` is bfloat16 on a GPU.
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
    """Default batch size in rows, on a device as ``resolve_device`` returns it."""
    return _BATCH_CUDA if device.startswith("cuda") else _BATCH_CPU


def libraries(adapter: str) -> set[str]:
    """The distributions, used by this adapter only, whose versions can change features."""
    if adapter not in ADAPTERS:
        return set()
    return {ADAPTERS[adapter].library, *ADAPTERS[adapter].helpers} - {""}


def check(feature: str, config: BackboneConfig) -> None:
    """Checks a declaration as far as possible without loading the model.

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
                f"Known adapters: {known}; a custom one is named as module:function."
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
    """Loads a declared backbone, ready to embed, and tests it on two rows.

    Args:
        feature: name of the feature.
        config: the declaration.
        device: as ``resolve_device`` returns it.
        dtype: as ``resolve_dtype`` returns it, or ``auto``.

    Raises:
        ConfigError: see :func:`check`; or the checkpoint is missing, damaged or of another kind; or
            a custom adapter did not return a valid backbone.
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
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"[backbones.{feature}]: the adapter {config.adapter} could not load "
            f"{config.model or 'its model'}:\n  {type(error).__name__}: {one_line(error)}\n"
            "Name another model, or use --debug to see where it happened."
        ) from error
    check_backbone(request, config.adapter, backbone)
    return backbone


def settings(feature: str, config: BackboneConfig, backbone: Backbone) -> Fingerprint:
    """The fingerprint fields of a custom backbone: ``<feature>.<setting>``.

    Raises:
        ConfigError: the name or the value of a setting cannot be recorded in a fingerprint.
    """
    recorded: dict[str, Any] = dict(getattr(backbone, "settings", {}))
    if config.adapter not in ADAPTERS:
        # Built-in adapters report the settings that they used. Of a custom adapter only its
        # arguments are known, and what its backbone expects of producers.
        asked = {name: getattr(config, name) for name in ("pooling", "size", "max_length")}
        recorded = {**asked, "input_sha256": _input_sha256(backbone), **recorded}
    side = backbone.image.size if modality_of(backbone) == "image" else 0  # type: ignore[union-attr]
    recorded |= {"size": side} if side else {"max_length": backbone.text.max_length}  # type: ignore[union-attr]
    for name, value in recorded.items():
        if name in _RESERVED or "." in name or type(value) not in (str, int):
            raise ConfigError(
                f"{feature}: the backbone's setting {name} = {value!r} cannot be recorded.\n"
                f"Settings are str or int, named without a dot and not {', '.join(_RESERVED)}."
            )
    return {f"{feature}.{name}": value for name, value in recorded.items()} | {
        f"{feature}.adapter": config.adapter
    }


def _input_sha256(backbone: Backbone) -> str:
    """SHA-256, in hexadecimal, of a backbone's image or text specification."""
    spec = backbone.image if modality_of(backbone) == "image" else backbone.text  # type: ignore[union-attr]
    # These two are recorded in separate fields.
    rest = {k: v for k, v in asdict(spec).items() if k not in ("size", "max_length")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def _installed() -> list[str]:
    """Names of the adapters that installed packages offer."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - ADAPTERS.keys())


def _loader(feature: str, name: str) -> Loader:
    """Imports the function of an adapter.

    Raises:
        ConfigError: its module is missing, cannot be imported, or has no such function.
    """
    if name in ADAPTERS:
        target = ADAPTERS[name].loader
    elif ":" in name:
        target = name
    else:
        (target, *_) = [p.value for p in entry_points(group=ENTRY_POINTS) if p.name == name]
    module, _, function = target.partition(":")
    ensure_importable()  # the adapter's module may import torchvision
    try:
        imported = importlib.import_module(module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            advice = "Its module must be on the Python path: install it, or set PYTHONPATH."
        else:
            advice = "Correct the module, or install what it needs; --debug shows where it failed."
        raise ConfigError(
            f"[backbones.{feature}]: the adapter {name} cannot be imported from {module}:\n"
            f"  {type(error).__name__}: {one_line(error)}\n{advice}"
        ) from error
    if not callable(getattr(imported, function, None)):
        raise ConfigError(
            f"[backbones.{feature}]: the adapter {name} cannot be imported: "
            f"{imported.__file__ or module} has no function {function!r}."
        )
    return cast("Loader", getattr(imported, function))
