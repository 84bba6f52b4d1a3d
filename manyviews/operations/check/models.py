"""The models that a build would use: their location, size, and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.backbones import declared, registry
from consumers.checkpoints.locating import Located, count_parameters
from consumers.choices import locate_model
from consumers.config import CompleteConfig
from consumers.engine.batch_plan import SHORT
from featurestore.records import FEATURES
from featurestore.wording import human_bytes
from manyviews.operations.check.findings import Group

# The parts of a checkpoint that the paper's features load, as prefixes of the weights' names.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "clip_image": ("vision_model.", "visual_projection."),
    "blip2_image": ("vision_model.", "query_tokens", "qformer."),
    "blip2_text": ("language_model.encoder.", "language_model.shared."),
}
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SOURCES = {
    "folder": "local folder",
    "cache": "the hub's cache",
    "hub": "would be fetched from the hub",
    "missing": "missing",
}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One feature's model.

    Attributes:
        feature: the feature.
        located: where its checkpoint is, or None for a custom adapter.
        parameters: number of parameters that are loaded for it, or None if not known yet.
        dtype: the dtype of the loaded parameters.
    """

    feature: str
    located: Located | None
    parameters: int | None
    dtype: str

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights on the device in bytes; 0 if not known yet."""
        return (self.parameters or 0) * _ITEM_BYTES[self.dtype]

    @property
    def is_here(self) -> bool:
        """Whether the model can be loaded without a download."""
        return self.located is None or self.located.where in ("folder", "cache")


def find_models(config: CompleteConfig, features: Sequence[str], device: str) -> list[FoundModel]:
    """Locates the model of each feature.

    Raises:
        ConfigError: the dtype is not available on the device.
    """
    models = []
    for feature in features:
        located, parameters = locate_model(config, feature), None
        if located is not None and located.checkpoint is not None:
            parameters = count_parameters(located.checkpoint, _PARTS.get(feature, ()))
        models.append(FoundModel(feature, located, parameters, _dtype(config, feature, device)))
    return models


def _dtype(config: CompleteConfig, feature: str, device: str) -> str:
    dtype = config.dtype
    custom = config.backbones.get(feature)
    if custom is not None and custom.adapter in declared.ADAPTERS and dtype == "auto":
        dtype = declared.ADAPTERS[custom.adapter].auto_dtype
    return registry.resolve_dtype(dtype, device, feature)


def models_group(models: Sequence[FoundModel]) -> Group:
    """The group about the models; a missing model is an error."""
    group = Group("models")
    group.facts = {model.feature: _facts(model) for model in models}
    for model in models:
        located = model.located
        if located is None:
            group.ok(model.feature, "a custom adapter loads the model")
            continue
        size = human_bytes(located.bytes)
        text = f"{located.model}: {_SOURCES[located.where]}, {size}"
        if model.parameters is not None:
            text += f", {model.parameters / 1e6:,.1f} M parameters as {model.dtype}"
        if located.where == "missing":
            group.failure(model.feature, located.problem)
        elif located.where == "hub":
            group.warn(
                model.feature,
                text,
                "A build fetches it at its start. Fetch it before a job on a machine without "
                f"network: hf download {located.model}",
            )
        else:
            group.ok(model.feature, text)
    return group


def _facts(model: FoundModel) -> dict[str, Any]:
    located = model.located
    return {
        "model": "" if located is None else located.model,
        "where": "adapter" if located is None else located.where,
        "folder": str(located.checkpoint.folder) if located and located.checkpoint else "",
        "bytes": 0 if located is None else located.bytes,
        "parameters": model.parameters,
        "dtype": model.dtype,
        "weight_bytes": model.weight_bytes,
        "problem": "" if located is None else located.problem,
    }


# The dimensions of the paper's checkpoints, known before they are fetched.
PAPER_DIMS = dict(zip(FEATURES, (512, 512, 768, 2048), strict=True))


def known_dims(models: Sequence[FoundModel]) -> dict[str, int]:
    """The dimensions of the paper's checkpoints, unless missing; others need loading."""
    return {
        model.feature: PAPER_DIMS[model.feature]
        for model in models
        if model.feature in FEATURES
        and model.located is not None
        and model.located.where != "missing"
        and model.located.model == registry.REGISTRY[model.feature].default_model
    }


def activation_bytes(config: Mapping[str, Any], tokens: int, batch: int, item_bytes: int) -> int:
    """Estimates the activation memory of a transformer's forward pass without gradients, in bytes.

    Per token, one layer holds four vectors of the model's width (input, residual, and the inputs of
    attention) and two of its MLP's inner width. Attention is computed in blocks; but T5 adds a
    position bias to every pair of tokens, of which two copies exist while it is computed.

    Args:
        config: a checkpoint's ``config.json``, or the part of it for this tower.
        tokens: tokens per row.
        batch: rows per forward pass.
        item_bytes: bytes per value.
    """
    width = _number(config, ("hidden_size", "d_model", "dim"), 0)
    inner = _number(config, ("intermediate_size", "d_ff", "hidden_dim"), 4 * width)
    is_t5 = config.get("model_type") == "t5"
    pairs = 2 * _number(config, ("num_heads",), 8) * tokens if is_t5 else 0
    return batch * tokens * (4 * width + 2 * inner + pairs) * item_bytes


def _number(config: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    """The first of the named values that is an integer; some models have lists instead."""
    return next((config[k] for k in names if type(config.get(k)) is int), default)


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    """One tower's configuration, or the whole configuration if it has no such part."""
    part = config.get(name)
    return part if isinstance(part, dict) else config


def batch_bytes(
    model: FoundModel, backbone: Any, batch: int, rows: Sequence[int], threads: int
) -> tuple[int, int, int]:
    """Estimates the memory of a loaded backbone's batches.

    Args:
        model: the located model.
        backbone: the loaded backbone.
        batch: rows per forward pass.
        rows: rows per chunk, for each part of the views; a batch has rows of one part only.
        threads: number of batches that are computed in parallel.

    Returns:
        Bytes kept on the device, bytes of working memory on the device, and bytes on the host.
    """
    staged, working = _batch(model, backbone, batch)
    device = host = 0
    for part in rows:
        kept, buffers = _batcher_bytes(backbone, batch, part, staged, threads)
        device, host = device + kept, host + buffers
    # One more copy of a chunk's features while it is written.
    host += sum(rows) * backbone.dim * 4
    return device, threads * working, host


def _batcher_bytes(
    backbone: Any, batch: int, rows: int, staged: int, threads: int
) -> tuple[int, int]:
    """Bytes on the device and on the host of all batchers of one backbone and part of the views.

    Args:
        backbone: the backbone.
        batch: rows per forward pass.
        rows: rows of the part per chunk.
        staged: bytes of one batch on its way to the device.
        threads: number of batches that are computed in parallel.
    """
    from consumers.engine.batcher import stages_of  # loads torch, as the backbone did

    stages = stages_of(backbone.device, threads)
    # The rows that pad the last batch need space as well.
    features = -(-rows // batch) * batch * backbone.dim * 4
    # Texts have two sets of batchers, each with the ids and features of a chunk; images have one
    # set, with the features of two chunks.
    sets, ids = 1, 0
    if registry.modality_of(backbone) == "text":
        sets, ids = 2, rows * (backbone.text.max_length + 1) * 4
    host = sets * (stages * staged + ids) + 2 * features
    device = sets * (stages * staged + features) if backbone.device.type == "cuda" else 0
    return device, host


def _batch(model: FoundModel, backbone: Any, batch: int) -> tuple[int, int]:
    """Bytes of one batch on its way to the device, and of a forward pass's working memory."""
    config = (
        dict(model.located.checkpoint.config) if model.located and model.located.checkpoint else {}
    )
    item = _ITEM_BYTES[model.dtype]
    if registry.modality_of(backbone) == "text":
        length = backbone.text.max_length
        staged = batch * (length + SHORT) * 4  # up to SHORT short texts more, each with its length
        part = _part(config, "text_config")
        return staged, activation_bytes(part, length, batch, item) + 4 * staged
    side = backbone.image.size
    part = _part(config, "vision_config")
    tokens = (side // max(1, _number(part, ("patch_size",), 16))) ** 2 + 1
    staged = batch * side * side * 3
    # Two more copies of the pixels: normalised, and as patches.
    return staged, 2 * staged * item + activation_bytes(part, tokens, batch, item)
