"""``timm``: any image model in timm's format, in a folder or on the hub."""

from __future__ import annotations

import math
from typing import Any

import torch

from consumers.backbones.adapters.pooling import mean_of_image
from consumers.backbones.adapters.torchvision_steps import read_transform
from consumers.backbones.protocol import BackboneRequest
from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import freeze
from consumers.preprocessing.pixels import Normalizer
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import one_line

ensure_importable()
import timm  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402


class TimmImage:
    """Features of a timm model before its classifier; an ``ImageBackbone``.

    Attributes:
        settings: name of the pooling.
    """

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        network = _load_network(checkpoint, request.size)
        self.image, table = _read_preprocessing(checkpoint, network, request.size)
        self._network = freeze(network.to(request.dtype), request.device, checkpoint)
        self._normalize = Normalizer(table, request.device, request.dtype)
        pooling = request.pooling or "pooler"
        self.settings = {"pooling": pooling}
        with checkpoint.loading("timm"):
            self.dim = self._probe_dim(checkpoint, pooling)
        self.fingerprint = checkpoint.fingerprint(("config.json", *checkpoint.weights()))

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on the device; returns float32 ``[B, D]`` there."""
        return self._vectors(self._normalize(pixels), self.settings["pooling"])

    def _vectors(self, pixels: torch.Tensor, pooling: str) -> torch.Tensor:
        """The vectors of normalised ``[B, 3, S, S]``; raises ValueError without that pooling."""
        states = self._network.forward_features(pixels)
        if pooling == "pooler":
            pooled: torch.Tensor = self._network.forward_head(states, pre_logits=True)
            return pooled.flatten(1).float()
        prefix = int(getattr(self._network, "num_prefix_tokens", 0)) if states.ndim == 3 else 0
        if pooling == "cls":
            if not prefix:
                raise ValueError("it has no class token")
            first: torch.Tensor = states[:, 0]
            return first.float()
        if states.ndim == 4 and states.shape[1] != self._network.num_features:
            states = states.permute(0, 3, 1, 2)  # some models have the channels last
        return mean_of_image(states[:, prefix:])

    def _probe_dim(self, checkpoint: Checkpoint, pooling: str) -> int:
        side = self.image.size
        pixels = torch.zeros(1, 3, side, side, dtype=self.dtype, device=self.device)
        try:
            with torch.inference_mode():
                return int(self._vectors(pixels, pooling).shape[1])
        except (AssertionError, LookupError, RuntimeError, ValueError) as error:
            problem = one_line(error)
            raise checkpoint.error(
                f"gives no vectors for {side} x {side} images with pooling = {pooling!r}: "
                f"timm says {problem.rstrip('.')}",
                f"Name another pooling or size in [backbones.{self.feature}], or another model",
            ) from error


def load(request: BackboneRequest) -> TimmImage:
    """Load a timm model without its classifier.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, its preprocessing is not
            reproduced, or it has no such pooling or size.
    """
    checkpoint = checkpoints.resolve(request.model, request.feature)
    if not isinstance(checkpoint.config.get("architecture"), str):
        kind = checkpoint.config.get("model_type") or "nameless"
        raise checkpoint.error(f"is a {kind} checkpoint, expected timm's (no architecture)")
    checkpoint.check_weights()
    return TimmImage(request, checkpoint)


def _load_network(checkpoint: Checkpoint, size: int) -> Any:
    """Loads the model with the weights of exactly the file that the fingerprint covers."""
    fixed = checkpoint.config.get("pretrained_cfg", checkpoint.config).get("fixed_input_size")
    (weights,) = checkpoint.weights()
    with checkpoint.loading("timm"):
        return timm.create_model(
            f"local-dir:{checkpoint.folder}",
            pretrained=True,
            pretrained_cfg_overlay={"source": "", "file": str(checkpoint.folder / weights)},
            num_classes=0,
            # A transformer's position embeddings have one size; a convolution accepts any.
            **({"img_size": size} if size and fixed else {}),
        )


def _read_preprocessing(checkpoint: Checkpoint, network: Any, size: int) -> Any:
    asked = {"input_size": (3, size, size)} if size else {}
    with checkpoint.loading("timm"):
        config = resolve_data_config(args=asked, model=network)
        transform = create_transform(**config)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise checkpoint.error(f"takes images of {channels} x {height} x {width}, not square RGB")
    if config["crop_mode"] not in ("center", "squash"):
        raise checkpoint.error(f"has the crop mode {config['crop_mode']!r}, which is unsupported")
    return read_transform(
        checkpoint,
        transform,
        height,
        resized=math.floor(height / config["crop_pct"]),
        squash=config["crop_mode"] == "squash",
        interpolation=config["interpolation"],
    )
