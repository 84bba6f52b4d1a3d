"""``clip_image``: CLIP's vision tower with its projection, not normalised."""

from __future__ import annotations

import torch

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import dtype_argument, freeze
from consumers.checkpoints.weights import PROCESSOR_FILES
from consumers.preprocessing.pixels import Normalizer, read_preprocessing
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: E402


class ClipImage:
    """Projected CLIP image features; an ``ImageBackbone``."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.feature = checkpoint.feature
        self.model = checkpoint.name
        self.device, self.dtype = device, dtype
        self._network = freeze(_load_network(checkpoint, dtype), device, checkpoint)
        config = self._network.config
        spec = read_preprocessing(checkpoint, config.image_size)
        self.image = spec.image
        self.dim = int(config.projection_dim)
        self._normalize = Normalizer(spec, device, dtype)
        files = ("config.json", *checkpoint.select(PROCESSOR_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on the device; returns float32 ``[B, D]`` there."""
        features: torch.Tensor = self._network(pixel_values=self._normalize(pixels)).image_embeds
        return features.float()


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ClipImage:
    """Load a CLIP checkpoint's image side.

    Raises:
        ConfigError: the checkpoint is damaged or of another kind.
    """
    checkpoint.require_type({"clip", "clip_vision_model"}, "CLIP")
    checkpoint.check_weights()
    return ClipImage(checkpoint, device, dtype)


def _load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> CLIPVisionModelWithProjection:
    with checkpoint.loading():
        config = CLIPVisionConfig.from_pretrained(checkpoint.folder)
        # A complete CLIP has the projection's size beside its two towers, not in them.
        config.projection_dim = checkpoint.config.get("projection_dim", config.projection_dim)
        network, report = CLIPVisionModelWithProjection.from_pretrained(
            checkpoint.folder,
            config=config,
            attn_implementation="sdpa",
            output_loading_info=True,
            **dtype_argument(dtype),
        )
    checkpoint.check_loaded(report)
    return network
