"""The token types, for encoders that take them in addition to the ids.

Producers only send ids. A tokenizer assigns one type to all tokens of a text, and to each special
token before and after them a type that depends on its position: so the lengths determine the types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

# Function from token ids and their mask, both int64 [B, L], to the types, int64 [B, L].
Types = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def read_types(tokenizer: Any, forward: Callable[..., Any]) -> Types | None:
    """The function that computes token types; None if the tokenizer or the encoder has none.

    Args:
        tokenizer: a fast tokenizer of transformers.
        forward: the encoder's forward function.

    Raises:
        ValueError: tokens of one text have several types.
    """
    name = "token_type_ids"
    if name not in tokenizer.model_input_names or name not in inspect.signature(forward).parameters:
        return None
    encoded = tokenizer("a spy", return_token_type_ids=True, return_special_tokens_mask=True)
    types, special = encoded[name], encoded["special_tokens_mask"]
    start = special.index(0)
    end = len(special) - special[::-1].index(0)
    own = set(types[start:end])
    if len(own) != 1:
        raise ValueError(f"its tokenizer gives one text the token types {sorted(own)}")
    (body,), before, after = own, types[:start], types[end:]

    def types_of(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        values = torch.full_like(ids, body)
        ends = mask.sum(dim=1, keepdim=True)
        for place, value in enumerate(before):
            values[:, place : place + 1] = value
        for place, value in enumerate(after, -len(after)):
            values.scatter_(1, (ends + place).clamp_min(0), value)
        return values

    return types_of
