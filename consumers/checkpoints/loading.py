"""Common code of the adapters: freezing a network, and reading a tokenizer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.patches import multiply_patches
from consumers.device.gpu_errors import gpu_advice
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import first_line
from producers.recipes.texts.tokens import TextSpec

ensure_importable()
import transformers  # noqa: E402

Network = TypeVar("Network", bound=torch.nn.Module)


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The ``from_pretrained`` argument for the weights' dtype; transformers 4.56 renamed it."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}


def freeze(network: Network, device: torch.device, checkpoint: Checkpoint) -> Network:
    """Move a network to its device, and disable dropout and gradients.

    On a GPU, convolutions of whole patches are replaced by matrix products, see ``patches``.

    On a CPU every weight is copied: safetensors maps the file, in which weights may be unaligned,
    and matrix products on unaligned memory round differently. A copy is always aligned, so the same
    weights give the same features however they are sharded. It also protects a running build from
    changes of the file.

    Raises:
        ConfigError: the device has not enough memory.
    """
    try:
        network = network.to(device)
    except RuntimeError as error:
        raise checkpoint.error(
            f"cannot be moved to {device}: {first_line(error)}",
            f"{gpu_advice(error) or 'Choose another --device'}, or give another",
        ) from error
    network.eval().requires_grad_(requires_grad=False)
    if device.type == "cuda":
        multiply_patches(network)
    if device.type == "cpu":
        for weight in (*network.parameters(), *network.buffers()):
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    return network


def text_spec(
    checkpoint: Checkpoint,
    tokenizer: Any,
    max_length: int,
    *,
    strip: bool = False,
    lower: bool = False,
) -> TextSpec:
    """Describe a checkpoint's fast tokenizer, so that a producer can run it without transformers.

    Args:
        checkpoint: the checkpoint of the tokenizer.
        tokenizer: a transformers tokenizer.
        max_length: maximum number of ids of a text, including special ids.
        strip: whether to remove the outer white space of texts first.
        lower: whether to convert texts to lower case first.

    Raises:
        ConfigError: the tokenizer is slow, truncates on the left, or has no padding token.
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise checkpoint.error("has no fast tokenizer (tokenizer.json)")
    # The tokenizer's padding side does not matter: batches are padded on the right, with a mask.
    if tokenizer.truncation_side != "right":
        raise checkpoint.error("has a tokenizer that truncates a text at its beginning")
    if tokenizer.pad_token_id is None:
        raise checkpoint.error("has a tokenizer without a padding token")
    # An earlier call may have enabled padding and truncation in the original.
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    return TextSpec(
        bare.to_str(),
        max_length,
        int(tokenizer.pad_token_id),
        strip,
        lower,
        mask_token=_mask_token(tokenizer),
    )


def _mask_token(tokenizer: Any) -> str:
    """The tokenizer's mask token; ``""`` if it has none."""
    token = str(tokenizer.special_tokens_map.get("mask_token") or "")
    is_known = token in tokenizer.get_vocab()
    return token if is_known and token == token.strip() else ""


def check_rows(checkpoint: Checkpoint, spec: TextSpec, embeddings: torch.nn.Embedding) -> None:
    """Refuse a tokenizer with token ids beyond the rows of the model's embeddings.

    Otherwise the first text with such a token would fail, maybe hours into a build.

    Args:
        checkpoint: the checkpoint, for messages.
        spec: the tokenizer.
        embeddings: the model's token embeddings.

    Raises:
        ConfigError: a token id has no row.
    """
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_str(spec.tokenizer_json).get_vocab(with_added_tokens=True)
    token, number = max(vocabulary.items(), key=lambda item: item[1])
    rows = embeddings.weight.shape[0]
    if number >= rows:
        beyond = sum(n >= rows for n in vocabulary.values())
        raise checkpoint.error(
            f"has a tokenizer of another model: {beyond:,} of its tokens have no row among "
            f"the {rows:,} embeddings, such as {token!r}, number {number:,}",
            "Put the tokenizer of these weights there, or give another",
        )
