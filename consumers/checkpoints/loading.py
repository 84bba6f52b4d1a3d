"""What the adapters share: freezing a network, and reading a tokenizer."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.patches import multiply_patches
from consumers.device.gpu_errors import gpu_advice
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import first_line
from producers.recipes.tokens import TextSpec

ensure_importable()
import transformers  # noqa: E402

Network = TypeVar("Network", bound=torch.nn.Module)


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The ``from_pretrained`` argument for the weights' dtype; transformers 4.56 renamed it."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}


def freeze(network: Network, device: torch.device, checkpoint: Checkpoint) -> Network:
    """Move a network to its device, without dropout and without gradients.

    On a GPU convolutions of whole patches become matrix products, see ``patches``.

    On a CPU every weight is copied: safetensors maps the file, where weights lie as they come, and
    matrix products on badly aligned memory round differently. A copy is always aligned, so the same
    weights give the same bytes however they are sharded; nor can a changed file reach a running
    build.

    Raises:
        ConfigError: the device has no room for it.
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
        checkpoint: where the tokenizer is from.
        tokenizer: a transformers tokenizer.
        max_length: the most ids of a text, special ones included.
        strip: whether texts lose their outer white space first.
        lower: whether texts are made lower case first.

    Raises:
        ConfigError: a slow tokenizer, one that cuts on the left, or one without a padding token.
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise checkpoint.error("has no fast tokenizer (tokenizer.json)")
    # Where it pads does not matter: a batch is padded on the right here, with a mask.
    if tokenizer.truncation_side != "right":
        raise checkpoint.error("has a tokenizer that cuts a text at its beginning")
    if tokenizer.pad_token_id is None:
        raise checkpoint.error("has a tokenizer without a padding token")
    # An earlier call may have left its padding and truncation switched on in the original.
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    return TextSpec(bare.to_str(), max_length, int(tokenizer.pad_token_id), strip, lower)


def check_rows(checkpoint: Checkpoint, spec: TextSpec, embeddings: torch.nn.Embedding) -> None:
    """Refuse a tokenizer that numbers a token beyond the rows of a model's embeddings.

    Only a text that holds that token would show it, maybe hours into a build.

    Args:
        checkpoint: for messages.
        spec: its tokenizer.
        embeddings: the module that gives each token its vector.

    Raises:
        ConfigError: it does so.
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
