"""What the engine expects of a backbone, and what an adapter gets to load one.

Importing this module does not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from featurestore.records import Modality

if TYPE_CHECKING:
    import torch

    from producers.recipes.images.geometry import ImageSpec
    from producers.recipes.texts.tokens import TextSpec


class ImageBackbone(Protocol):
    """A frozen image encoder.

    Attributes:
        feature: the feature's name.
        model: the checkpoint's name, without any path.
        fingerprint: SHA-256 over every file of the checkpoint that changes numbers.
        dim: length D of a feature vector.
        image: how a producer resizes and crops the pixels that ``embed`` takes.
        device: device of the weights.
        dtype: dtype of the weights.
    """

    feature: str
    model: str
    fingerprint: str
    dim: int
    image: ImageSpec
    device: torch.device
    dtype: torch.dtype

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on ``device``; returns float32 ``[B, D]`` there."""
        ...


class TextBackbone(Protocol):
    """A frozen text encoder.

    Attributes:
        feature: the feature's name.
        model: the checkpoint's name, without any path.
        fingerprint: SHA-256 over every file of the checkpoint that changes numbers.
        dim: length D of a feature vector.
        text: how a producer turns a text into the token ids that ``embed`` takes.
        device: device of the weights.
        dtype: dtype of the weights.
    """

    feature: str
    model: str
    fingerprint: str
    dim: int
    text: TextSpec
    device: torch.device
    dtype: torch.dtype

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        ...


Backbone: TypeAlias = "ImageBackbone | TextBackbone"


@dataclass(frozen=True, slots=True)
class BackboneRequest:
    """The arguments of an adapter: one table ``[backbones.NAME]``, device and dtype.

    Attributes:
        feature: the feature's name.
        model: hub id or local folder; ``""`` if none was named.
        device: device for the weights.
        dtype: dtype for the weights.
        pooling: how the token vectors are reduced to one vector; ``""`` leaves it to the adapter.
        size: side of the square images, in pixels; 0 leaves it to the checkpoint.
        max_length: maximum length of a text, in tokens; 0 leaves it to the checkpoint.
    """

    feature: str
    model: str
    device: torch.device
    dtype: torch.dtype
    pooling: str = ""
    size: int = 0
    max_length: int = 0


def modality_of(backbone: Backbone) -> Modality:
    """The modality that a loaded backbone embeds."""
    return "image" if hasattr(backbone, "image") else "text"
