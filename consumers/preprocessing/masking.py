"""Padding masks in the form that attention takes, computed without inspecting their values.

Given a 0/1 mask, transformers checks whether any token is padding, and omits the mask if not. On a
GPU this check waits for the device once per batch, with no work queued behind it. A prepared mask
is used without a check.

T5 adds the mask to its position bias in every layer, for every head and pair of tokens of every
text, although the bias is the same in all layers. Here the mask is added once, to the bias itself.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from consumers.device.gpu_errors import gpu_advice

# Encoders in which every layer attends to the whole text. A prepared mask would disable a window or
# a causal order, which the short texts below might not reveal.
_WHOLE_TEXT = ("albert", "bert", "distilbert", "mpnet", "roberta", "t5", "xlm-roberta")
# Two texts with the same first tokens, the second padded: its features show whether the padding was
# attended to.
_IDS = ((1, 2, 3, 4), (1, 2, 0, 0))
_LENGTHS = (4, 2)
# Relative to the largest value; an ignored or misread mask changes features by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def prepare_masks(encoder: Any) -> bool:
    """Make a transformers text encoder use prepared masks, if its features stay the same.

    Args:
        encoder: takes ``input_ids`` and ``attention_mask``, returns ``last_hidden_state``.

    Returns:
        Whether the encoder was changed. Other kinds of encoders, and most encoders of transformers
        before 5, do not accept prepared masks: they are not changed.

    Raises:
        RuntimeError: the GPU failed.
    """
    if encoder.config.model_type not in _WHOLE_TEXT:
        return False
    expected = _answer(encoder)
    biased = [m for m in encoder.modules() if getattr(m, "has_relative_attention_bias", False)]
    bias = _MaskedBias(biased[0].compute_bias) if len(biased) == 1 else None
    # Not a hook: sentence-transformers calls forward directly, which ignores hooks.
    encoder.forward = _prepared(encoder, bias)
    if bias is not None:
        biased[0].compute_bias = bias
    if _equal(encoder, expected):
        return True
    del encoder.forward
    if bias is not None:
        del biased[0].compute_bias
    return False


class _MaskedBias:
    """Adds a mask, ``[B, 1, 1, L]``, to the position bias of T5's first layer.

    The sum, ``[B, heads, L, L]``, is passed to the other layers. It has the memory layout that
    attention needs, so that no layer copies it.
    """

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        self._compute = compute
        # Each thread embeds other texts.
        self._own = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        bias = self._compute(*args, **kwargs)
        mask = getattr(self._own, "mask", None)
        return bias if mask is None else (bias + mask).contiguous()

    @contextmanager
    def adding(self, mask: torch.Tensor) -> Iterator[None]:
        """Adds ``mask`` to the biases that this thread computes in the block."""
        self._own.mask = mask
        try:
            yield
        finally:
            self._own.mask = None


def _prepared(encoder: Any, bias: _MaskedBias | None) -> Callable[..., Any]:
    forward, dtype = encoder.forward, encoder.dtype

    @functools.wraps(forward)
    def with_prepared_mask(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return forward(*args, **kwargs)
        # The summand of attention's scores, [B, 1, 1, L]: the same for all heads and queries.
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        added = added.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]
        if bias is None:
            return forward(*args, **kwargs | {"attention_mask": added})
        with bias.adding(added):
            return forward(*args, **kwargs | {"attention_mask": None})

    return with_prepared_mask


def _equal(encoder: Any, expected: list[torch.Tensor]) -> bool:
    try:
        states = _answer(encoder)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if gpu_advice(error):
            raise  # the mask is not to blame; without it, features would have other last bits
        return False
    within = _TOLERANCE[encoder.dtype] * max(float(e.abs().max()) for e in expected)
    pairs = zip(states, expected, strict=True)
    return all(float((one - other).abs().max()) <= within for one, other in pairs)


@torch.inference_mode()
def _answer(encoder: Any) -> list[torch.Tensor]:
    """Each text's hidden states, float32 ``[length, D]``."""
    ids = torch.tensor(_IDS, device=encoder.device)
    lengths = torch.tensor(_LENGTHS, device=encoder.device)[:, None]
    mask = (torch.arange(ids.shape[1], device=encoder.device) < lengths).long()
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    return [row[:length] for row, length in zip(states, _LENGTHS, strict=True)]
