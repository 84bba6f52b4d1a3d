"""What the adapters for transformers share: loading by ``AutoModel``, whatever the class."""

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
        dtype: the weights' dtype.
        unused: the tower that a model of images and texts can do without: half of its memory.

    Returns:
        The network, and the names of its weights that the checkpoint lacks. A pooler is often one
        of them: many checkpoints were saved without, and what transformers puts in its place is
        drawn at random.

    Raises:
        ConfigError: the checkpoint is damaged, wants code of its own, or weights have other shapes.
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
    """``value``; raises ValueError where the model has none of that name."""
    if value is None:
        raise ValueError(f"it has no {name}")
    return value


def vector_of(found: Any) -> torch.Tensor:
    """What ``get_image_features`` and its like return: from transformers 5 on, an output object."""
    if not isinstance(found, torch.Tensor):
        found = required(getattr(found, "pooler_output", None), "projection")
    return found.float()  # type: ignore[no-any-return]
