"""``transformers-image``: any vision encoder that ``AutoModel`` loads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from consumers.backbones.adapters.auto import load_auto, required, vector_of
from consumers.backbones.adapters.pooling import mean_of_image
from consumers.backbones.protocol import BackboneRequest
from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import freeze
from consumers.checkpoints.weights import PROCESSOR_FILES
from consumers.preprocessing.pixels import Normalizer
from consumers.preprocessing.processors import Table, check_by_example, read_table
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import one_line
from producers.recipes.images.geometry import ImageSpec

ensure_importable()
import transformers  # noqa: E402
from transformers import AutoImageProcessor  # noqa: E402

# Allowed difference, in levels of 256, from a processor that resizes with torchvision, which keeps
# fractions of a level: Pillow, and so the producers, round after each of two passes.
_ROUNDING = 1.05
# ConvNeXt's processor squashes images from this size on, and crops below it.
_CONVNEXT_SQUASHES = 384


class TransformersImage:
    """Features of a vision encoder; an ``ImageBackbone``.

    Attributes:
        settings: name of the pooling.
    """

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        self.image, table, native = _read_processor(checkpoint, request.size)
        network, missing = load_auto(checkpoint, request.dtype, "text_model")
        self._network = freeze(network, request.device, checkpoint)
        self._normalize = Normalizer(table, request.device, request.dtype)
        self._resized = self.image.size != native
        with checkpoint.loading():
            pooling, self.dim = self._choose(checkpoint, request.pooling, missing)
        self.settings = {"pooling": pooling}
        files = ("config.json", *checkpoint.select(PROCESSOR_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on the device; returns float32 ``[B, D]`` there."""
        return self._vectors(self._normalize(pixels), self.settings["pooling"])

    def _vectors(self, pixels: torch.Tensor, pooling: str) -> torch.Tensor:
        """The vectors of normalised ``[B, 3, S, S]``; raises ValueError without that pooling."""
        if pooling == "projection":
            return vector_of(self._call(self._network.get_image_features, pixels))
        encoder = self._network
        if hasattr(encoder, "get_image_features"):
            encoder = encoder.vision_model
        output = self._call(encoder, pixels)
        if pooling == "pooler":
            pooled: torch.Tensor = required(getattr(output, "pooler_output", None), "pooler")
            return pooled.flatten(1).float()
        states = output.last_hidden_state
        if pooling == "mean":
            return mean_of_image(states)
        if states.ndim != 3:
            raise ValueError("it has no tokens, so no first token")
        first: torch.Tensor = states[:, 0].float()
        return first

    def _call(self, function: Callable[..., Any], pixels: torch.Tensor) -> Any:
        takes = inspect.signature(getattr(function, "forward", function)).parameters
        if self._resized and "interpolate_pos_encoding" in takes:
            return function(pixel_values=pixels, interpolate_pos_encoding=True)
        return function(pixel_values=pixels)

    def _choose(
        self, checkpoint: Checkpoint, asked: str, missing: tuple[str, ...]
    ) -> tuple[str, int]:
        """The requested pooling, or that of the model, and the dimension of its vectors."""
        if asked:
            pooling = asked
        elif hasattr(self._network, "get_image_features"):
            pooling = "projection"
        else:
            pooling = "pooler"
        absent = [
            name for name in missing if pooling == "pooler" or "pooler" not in name.split(".")
        ]
        side = self.image.size
        pixels = torch.zeros(1, 3, side, side, dtype=self.dtype, device=self.device)
        try:
            if absent and not asked:
                raise ValueError(f"its weights are not in the checkpoint: {', '.join(absent[:2])}")
            with torch.inference_mode():
                dim = self._vectors(pixels, pooling).shape[1]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = one_line(error)
            raise checkpoint.error(
                f"gives no vectors for {side} x {side} images with pooling = {pooling!r}: "
                f"transformers says {problem.rstrip('.')}",
                f"Name another pooling or size in [backbones.{self.feature}], or another model",
            ) from error
        if absent:
            raise checkpoint.error(f"lacks weights of this model: {', '.join(absent[:3])}")
        return pooling, int(dim)


def load(request: BackboneRequest) -> TransformersImage:
    """Load a vision encoder, or the vision side of a model of images and texts.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, its image processor is
            not reproduced, or it has no such pooling or size.
    """
    checkpoint = checkpoints.resolve(request.model, request.feature)
    checkpoint.check_weights()
    return TransformersImage(request, checkpoint)


def _read_processor(checkpoint: Checkpoint, size: int) -> tuple[ImageSpec, Table, int]:
    """Geometry and arithmetic of a checkpoint's processor, and its default side in pixels."""
    backend: dict[str, Any] = {"backend": "pil"}
    if int(transformers.__version__.split(".")[0]) < 5:
        backend = {"use_fast": False}

    def make(**changes: Any) -> Any:
        return AutoImageProcessor.from_pretrained(
            checkpoint.folder, trust_remote_code=False, **backend, **changes
        )

    with checkpoint.loading():
        processor = make()
        image = native = _geometry(checkpoint, processor)
        if size not in (0, native.size):
            processor = make(**_resized(processor.to_dict(), native, size))
            image = _geometry(checkpoint, processor)

    def process(poster: Any, **changes: Any) -> Any:
        return processor(poster, return_tensors="np", **changes)["pixel_values"][0]

    def scale(poster: Any) -> Any:
        return process(poster, do_resize=False, do_center_crop=False)

    with checkpoint.loading():
        table = read_table(checkpoint, scale)
        rounds = getattr(processor, "backend", "pil") == "pil"
        check_by_example(checkpoint, image, table, process, 0 if rounds else _ROUNDING)
    return image, table, native.size


def _geometry(checkpoint: Checkpoint, processor: Any) -> ImageSpec:
    name = type(processor).__name__
    config = processor.to_dict()
    if not config.get("do_resize"):
        raise checkpoint.error(f"has a {name} without do_resize")
    try:
        return _spec(config)
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.error(f"has a {name} of an unsupported size: {error}") from error


def _spec(config: dict[str, Any]) -> ImageSpec:
    size = {key: int(side) for key, side in config["size"].items() if side}
    resample = int(config["resample"])
    crop = _side(config["crop_size"]) if config.get("do_center_crop") else None
    if set(size) != {"shortest_edge"}:
        side = _side(size)
        return ImageSpec(crop or side, None, resample, None if crop in (None, side) else side)
    edge = size["shortest_edge"]
    if "crop_pct" in config:
        if edge >= _CONVNEXT_SQUASHES:
            return ImageSpec(edge, None, resample)
        return ImageSpec(edge, int(edge / config["crop_pct"]), resample)
    if crop is None or crop > edge:
        raise ValueError(f"shortest edge {edge} with centre crop {crop} is not always a square")
    return ImageSpec(crop, edge, resample)


def _side(size: dict[str, int]) -> int:
    height, width = size["height"], size["width"]
    if height != width:
        raise ValueError(f"{height} x {width} is not a square")
    return int(height)


def _resized(config: dict[str, Any], native: ImageSpec, size: int) -> dict[str, Any]:
    """The processor's arguments for another side; the cropped share stays the same."""
    if config.get("do_center_crop"):
        before = native.shortest_edge or native.squash or native.size
        resized = round(before * size / native.size)
        crop = {"crop_size": {"height": size, "width": size}}
    else:
        resized, crop = size, {}
    if "shortest_edge" in config["size"] and config["size"]["shortest_edge"]:
        return {"size": {"shortest_edge": resized}, **crop}
    return {"size": {"height": resized, "width": resized}, **crop}
