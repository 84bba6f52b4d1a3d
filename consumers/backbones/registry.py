"""The registry of the paper's four features, and what is checked of every feature.

Importing this module loads neither torch nor transformers: the command line reads the registry for
its help and its checks, and only ``load`` pays for the libraries.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from consumers.backbones.protocol import Backbone, modality_of
from consumers.checkpoints import checkpoints
from consumers.device.devices import (
    DTYPES,
    device_kind,
    make_reproducible,
    resolve_device,
    resolve_dtype,
    resolve_threads,
)
from featurestore.errors import BackboneError, ConfigError
from featurestore.records import FEATURES, Modality

__all__ = [
    "DTYPES",
    "REGISTRY",
    "FeatureInfo",
    "check_features",
    "device_kind",
    "info",
    "load",
    "modality_of",
    "quiet_transformers",
    "resolve_device",
    "resolve_dtype",
    "resolve_threads",
]


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """The facts of a feature that are known before its checkpoint is opened.

    Attributes:
        modality: ``image`` or ``text``.
        default_model: hub id of the paper's checkpoint.
        variable: environment variable that names another checkpoint.
        batch_cpu: default batch size on a CPU.
        batch_cuda: default batch size on a GPU; fits 24 GB with the default checkpoint in bfloat16.
        loader: ``module:function`` of the adapter, imported when the feature is loaded.
        dim: where the checkpoint states the feature's dimension: a file, and the keys in it.
    """

    modality: Modality
    default_model: str
    variable: str
    batch_cpu: int
    batch_cuda: int
    loader: str
    dim: tuple[str, ...]

    def batch_size(self, device: str) -> int:
        """The default batch size on ``device``, as ``resolve_device`` returns it."""
        return self.batch_cuda if device.startswith("cuda") else self.batch_cpu

    def model(self, environ: Mapping[str, str] | None = None) -> str:
        """The checkpoint to use by default: that of the environment variable, or the paper's."""
        environ = os.environ if environ is None else environ
        return environ.get(self.variable, "").strip() or self.default_model


_BLIP2 = "Salesforce/blip2-flan-t5-xl"
_SENTENCE = "sentence-transformers/clip-ViT-B-32-multilingual-v1"

REGISTRY: Mapping[str, FeatureInfo] = {
    "clip_image": FeatureInfo(
        "image",
        "openai/clip-vit-base-patch32",
        "CLIP_MODEL_ID_IMG",
        32,
        512,
        "consumers.backbones.clip:load",
        ("config.json", "projection_dim"),
    ),
    "clip_text": FeatureInfo(
        "text",
        _SENTENCE,
        "CLIP_MODEL_ID_TXT",
        32,
        512,
        "consumers.backbones.sentence:load",
        ("2_Dense/config.json", "out_features"),
    ),
    "blip2_image": FeatureInfo(
        "image",
        _BLIP2,
        "BLIP2_MODEL_ID",
        8,
        128,
        "consumers.backbones.blip2:load_image",
        ("config.json", "qformer_config", "hidden_size"),
    ),
    "blip2_text": FeatureInfo(
        "text",
        _BLIP2,
        "BLIP2_MODEL_ID",
        16,
        64,
        "consumers.backbones.blip2:load_text",
        ("config.json", "text_config", "d_model"),
    ),
}


def info(feature: str) -> FeatureInfo:
    """The registry's entry for ``feature``; raises ConfigError for an unknown feature."""
    try:
        return REGISTRY[feature]
    except KeyError:
        known = ", ".join(FEATURES)
        raise ConfigError(f"Unknown feature {feature!r}; known features: {known}.") from None


def known_dim(feature: str, model: str) -> int | None:
    """The feature's dimension as its checkpoint states it, if the checkpoint is on this machine.

    Args:
        feature: one of ``FEATURES``.
        model: a hub id or a local folder.

    Returns:
        The dimension, or None if it is not known before the model is loaded.
    """
    file, *keys = info(feature).dim
    try:
        checkpoint = checkpoints.resolve_folder(model, feature)
        checkpoint = checkpoint or checkpoints.resolve_cached(model, feature)
        value: Any = None if checkpoint is None else checkpoints.read_json(checkpoint, file)
    except ConfigError:
        return None  # loading the model raises it with the same text
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if type(value) is int and value > 0 else None


def load(feature: str, model: str, device: str, dtype: str) -> Backbone:
    """Load one feature's backbone, ready to embed.

    Args:
        feature: one of ``FEATURES``.
        model: a hub id or a local folder.
        device: as ``resolve_device`` returns it.
        dtype: as ``resolve_dtype`` returns it, or ``auto``; ``clip_text`` is always float32,
            because the published features are.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, or an argument is
            invalid.
    """
    module, _, function = info(feature).loader.partition(":")
    dtype = resolve_dtype(dtype, device, feature)
    checkpoint = checkpoints.resolve(model, feature)
    quiet_transformers()
    make_reproducible()
    import torch

    loader = getattr(importlib.import_module(module), function)
    with checkpoint.loading():  # the loaders use it themselves where they know the library
        backbone = loader(checkpoint, torch.device(device), getattr(torch, dtype))
    return cast("Backbone", backbone)


def check_features(
    feature: str,
    rows: npt.NDArray[Any],
    expected_dim: int,
    *,
    first_sample: int = 0,
    first_view: int = 0,
    views: int = 1,
) -> None:
    """Raise BackboneError unless ``rows`` are finite float32 ``[n, expected_dim]``.

    Args:
        feature: the feature's name, for the message.
        rows: features in the order ``sample * views + view``.
        expected_dim: D.
        first_sample: index of the sample of the first row.
        first_view: index of the first view of each sample.
        views: number of rows per sample.

    Raises:
        BackboneError: with the first bad row's sample and view, and how many rows are bad.
    """
    if rows.ndim != 2 or rows.shape[1] != expected_dim or rows.dtype != np.float32:
        raise BackboneError(
            f"{feature} returned {rows.dtype} {list(rows.shape)}; "
            f"expected float32 [rows, {expected_dim}]."
        )
    # One pass without a temporary array: a float64 sum of float32 values cannot overflow.
    with np.errstate(invalid="ignore"):
        if np.isfinite(rows.sum(dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    row = int(bad[0])
    raise BackboneError(
        f"{feature} returned values that are not finite in {len(bad)} of {len(rows)} rows, "
        f"first for sample {first_sample + row // views}, view {first_view + row % views}.\n"
        "Nothing of this chunk was written. float16 overflows in some models: "
        "try --dtype bfloat16 or float32."
    )


def quiet_transformers() -> None:
    """Keep transformers' load reports, progress bars and warnings off stderr.

    The build has its own display, and what matters in a report (a missing weight) is an error.
    """
    from featurestore.system.torchvision_ops import ensure_importable

    ensure_importable()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
