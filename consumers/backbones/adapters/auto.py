"""Common code of the adapters for transformers: loading by ``AutoModel``, for any class."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import dtype_argument
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()
from transformers import AutoModel  # noqa: E402

T = TypeVar("T")


def load_auto(
    checkpoint: Checkpoint, dtype: torch.dtype, unused: str
) -> tuple[Any, tuple[str, ...]]:
    """Load a checkpoint with ``AutoModel``.

    Args:
        checkpoint: a checkpoint of transformers.
        dtype: dtype of the weights.
        unused: name of the tower of an image-text model that is not needed; dropping it halves the
            memory.

    Returns:
        The network, and the names of its weights that the checkpoint lacks. These are often those
        of a pooler: many checkpoints have none, and transformers then initialises it at random.

    Raises:
        ConfigError: the checkpoint is damaged, needs custom code, or has weights of other shapes.
    """
    with checkpoint.loading():
        network, report = AutoModel.from_pretrained(
            checkpoint.folder,
            trust_remote_code=False,
            output_loading_info=True,
            **dtype_argument(dtype),
        )
    both = hasattr(network, "get_image_features") and hasattr(network, "get_text_features")
    if both and isinstance(getattr(network, unused, None), torch.nn.Module):
        delattr(network, unused)
    kept = network.state_dict().keys()
    checkpoint.check_loaded({"missing_keys": (), "mismatched_keys": report["mismatched_keys"]})
    return network, tuple(sorted(kept & {str(key) for key in report["missing_keys"]}))


def required(value: T | None, name: str) -> T:
    """Returns ``value``; raises ValueError for None, because the model has no ``name``."""
    if value is None:
        raise ValueError(f"it has no {name}")
    return value


def vector_of(output: Any) -> torch.Tensor:
    """The vectors in the output of ``get_image_features``, an object from transformers 5 on."""
    if not isinstance(output, torch.Tensor):
        output = required(getattr(output, "pooler_output", None), "projection")
    return output.float()  # type: ignore[no-any-return]
