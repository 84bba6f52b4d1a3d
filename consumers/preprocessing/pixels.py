"""A checkpoint's image processor: its geometry for producers, and its scaling of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumers.checkpoints.checkpoints import Checkpoint, read_json
from producers.recipes.images.geometry import ImageSpec

# The defaults of the two supported processors, for fields that a configuration may omit.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_COMMON = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _COMMON | {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224},
    "Blip": _COMMON | {"size": {"height": 384, "width": 384}, "do_center_crop": False},
}
_SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A checkpoint's image processor.

    Attributes:
        image: geometry of the clean view.
        scale: factor that maps 0..255 to 0..1.
        mean: three values, subtracted from the scaled channels.
        std: three values, by which the channels are divided.
    """

    image: ImageSpec
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_preprocessing(checkpoint: Checkpoint, image_size: int) -> Preprocessing:
    """Read a checkpoint's image processor, in any file layout of transformers.

    Args:
        checkpoint: a CLIP or BLIP-2 checkpoint.
        image_size: S, image size of the vision tower in pixels.

    Raises:
        ConfigError: there is no processor, or this pipeline does not reproduce it.
    """
    kind, config = _processor_config(checkpoint)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config[step]:
            raise checkpoint.error(f"has an image processor without {step}")
    try:
        mean, std = (_three(config[key]) for key in ("image_mean", "image_std"))
        image = _image_spec(config, square=kind == "Blip")
    except (TypeError, ValueError, LookupError) as error:
        raise checkpoint.error(f"has an unsupported image processor: {error}") from error
    if image.size != image_size:
        raise checkpoint.error(
            f"has an image processor of {image.size} pixels, but a model of {image_size}"
        )
    return Preprocessing(image, float(config["rescale_factor"]), mean, std)


def _processor_config(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    # transformers 5 saves it in processor_config.json, and prefers that file.
    config = read_json(checkpoint, "processor_config.json").get("image_processor")
    config = config or read_json(checkpoint, "preprocessor_config.json")
    if not config:
        raise checkpoint.error("has no preprocessor_config.json")
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    for kind, defaults in _DEFAULTS.items():
        if name in {kind + suffix for suffix in _SUFFIXES}:
            return kind, defaults | {k: v for k, v in config.items() if v is not None}
    raise checkpoint.error(f"has an image processor {name}, expected CLIP's or BLIP's")


def _image_spec(config: dict[str, Any], *, square: bool) -> ImageSpec:
    size, resample = config["size"], int(config["resample"])
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    crop = _side(config["crop_size"]) if config["do_center_crop"] else None
    if set(size) == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        # Without a crop the result would not be square; a larger crop would be padded.
        if crop is None or crop > edge:
            raise ValueError(f"shortest edge {edge} with centre crop {crop}")
        return ImageSpec(crop, edge, resample)
    side = _side(size)
    if crop not in (None, side):
        raise ValueError(f"size {side} with centre crop {crop}")
    return ImageSpec(side, None, resample)


def _side(size: int | dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    if set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise ValueError(f"size {size} is not a square")
    return int(size["height"])


def _three(values: float | Sequence[float]) -> tuple[float, ...]:
    channels = tuple(float(v) for v in (values if isinstance(values, Sequence) else [values] * 3))
    if len(channels) != 3:
        raise ValueError(f"{len(channels)} channels instead of 3")
    return channels


class Normalizer:
    """Scales uint8 pixels to the input of a vision tower, with the processor's own rounding.

    A pixel has 256 values, so the arithmetic of transformers' PIL processors is a table
    ``[3, 256]``: float64 product rounded to float32, then float32 difference and quotient. A lookup
    gives exactly the same values on a GPU, and only bytes are copied to it.

    Attributes:
        table: ``[3, 256]``, the value of each channel and level, in the model's dtype and on its
            device.
    """

    def __init__(
        self,
        spec: Preprocessing | npt.NDArray[np.float32],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Computes the table of a processor, or uses a given table, float32 ``[3, 256]``."""
        table = lookup_table(spec) if isinstance(spec, Preprocessing) else spec
        self.table = torch.from_numpy(table).to(device=device, dtype=dtype)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 ``[B, S, S, 3]``; returns the model's dtype, ``[B, 3, S, S]``."""
        batch, height, width, channels = pixels.shape
        planes = self.table.new_empty(batch, channels, height, width)
        for c in range(channels):
            # One plane at a time keeps the int32 copy small. index_select accepts int32, whereas
            # indexing converts to int64 and takes three times as long on a CPU.
            values = self.table[c].index_select(0, pixels[..., c].flatten().int())
            planes[:, c] = values.view(batch, height, width)
        return planes


def lookup_table(spec: Preprocessing) -> npt.NDArray[np.float32]:
    """The normalised value of each channel and pixel value, float32 ``[3, 256]``."""
    scaled = (np.arange(256, dtype=np.float64) * spec.scale).astype(np.float32)  # [256]
    mean = np.array(spec.mean, np.float32)[:, None]
    std = np.array(spec.std, np.float32)[:, None]
    table: npt.NDArray[np.float32] = (scaled - mean) / std
    return table
