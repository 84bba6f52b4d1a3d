"""Makes the features of a text independent of its padding, for encoders that ignore the mask.

Producers pad on the right, whatever side a tokenizer pads on: an encoder that respects the mask
gives the same features. Some encoders do not: a Fourier transform or a convolution treats padding
as text. They embed texts of one length at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from producers.recipes.texts.tokens import TextSpec, TokenEncoder

# Function from token ids and their mask, both int64 [B, L], to features, float32 [B, D].
Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Known to ignore the mask; in half precision the check below cannot distinguish it from rounding.
_IGNORES_MASK = ("convbert", "fnet")
# A text padded by this many tokens must give the same features, up to rounding.
_PADDING = 5
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def encode_text(spec: TextSpec, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of one text and their mask, int64 ``[1, L]``."""
    ids, lengths = np.empty((1, spec.max_length), np.int32), np.empty(1, np.int32)
    TokenEncoder(spec).encode([text], ids, lengths)
    row = torch.from_numpy(ids[:, : lengths[0]]).long()
    return row, torch.ones_like(row)


def depends_on_padding(encoder: Any, embed: Embed, spec: TextSpec) -> bool:
    """Whether padding changes the features of a text, beyond rounding.

    Args:
        encoder: the transformers model, on its device.
        embed: the model's function from ids and mask to features.
        spec: the tokenizer.
    """
    if encoder.config.model_type in _IGNORES_MASK:
        return True
    device, dtype = encoder.device, encoder.dtype
    ids, mask = (t.to(device) for t in encode_text(spec, "a secret life"))
    room = min(_PADDING, spec.max_length - ids.shape[1])
    padded = torch.nn.functional.pad(ids, (0, room), value=spec.pad_id)
    beside = embed(padded, torch.nn.functional.pad(mask, (0, room)))
    alone = embed(ids, mask)
    error = float((beside - alone).abs().max() / alone.abs().max().clamp_min(1e-30))
    return error > _TOLERANCE[dtype]


def embed_by_length(embed: Embed, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embeds each text without padding, by length; waits for the GPU."""
    lengths = mask.sum(dim=1)
    features: torch.Tensor | None = None
    for length in sorted(set(lengths.tolist())):
        rows = lengths == length
        vectors = embed(ids[rows, :length], mask[rows, :length])
        if features is None:
            features = vectors.new_empty(len(ids), vectors.shape[1])
        features[rows] = vectors
    if features is None:
        raise ValueError("a batch has no texts")
    return features


def attend_to_whole_texts(encoder: Any) -> None:
    """Make BigBird attend to the whole text.

    By default it attends in blocks until the first short batch, and to the whole text from then on:
    the features of a long text would depend on earlier batches.
    """
    if hasattr(encoder, "set_attention_type"):
        encoder.set_attention_type("original_full")
