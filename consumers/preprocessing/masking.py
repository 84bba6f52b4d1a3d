"""Padding masks in the form that attention takes, made without a look at their values.

Given which tokens are padding, transformers asks whether any is, to leave the mask out if not. On a
GPU that answer has to be waited for, once per batch, while nothing is queued behind it. A mask that
is prepared already is taken as it comes.

T5 adds the mask to its position bias, which is the same in all layers, in each of them anew: for
every head and pair of tokens of every text. Here the bias is asked for with the mask in it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from consumers.device.gpu_errors import gpu_advice

# Encoders whose every layer attends to the whole text. A prepared mask would undo a window or a
# causal order, which the short texts below might not show.
_WHOLE_TEXT = ("albert", "bert", "distilbert", "mpnet", "roberta", "t5", "xlm-roberta")
# Two texts of the same beginning, the second padded: its features tell whether padding was seen.
_IDS = ((1, 2, 3, 4), (1, 2, 0, 0))
_LENGTHS = (4, 2)
# Relative to the largest value; a mask that is ignored or misread moves features by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def prepare_masks(encoder: Any) -> bool:
    """Have a transformers text encoder get its masks prepared, if it then computes the same.

    Args:
        encoder: takes ``input_ids`` and ``attention_mask``, gives ``last_hidden_state``.

    Returns:
        Whether it does now. Other kinds of encoders, and most of transformers before 5, take no
        prepared mask: they are left as they are.

    Raises:
        RuntimeError: the GPU failed.
    """
    if encoder.config.model_type not in _WHOLE_TEXT:
        return False
    expected = _answer(encoder)
    biased = [m for m in encoder.modules() if getattr(m, "has_relative_attention_bias", False)]
    bias = _MaskedBias(biased[0].compute_bias) if len(biased) == 1 else None
    # Not a hook: sentence-transformers calls forward itself, which passes hooks by.
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
    """Adds a mask, ``[B, 1, 1, L]``, to what T5's first layer adds to attention's scores.

    The sum, ``[B, heads, L, L]``, goes on to the other layers, and is laid out as attention wants
    it, so that none of them makes a copy.
    """

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        self._compute = compute
        # Each thread embeds texts of its own.
        self._own = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        bias = self._compute(*args, **kwargs)
        mask = getattr(self._own, "mask", None)
        return bias if mask is None else (bias + mask).contiguous()

    @contextmanager
    def adding(self, mask: torch.Tensor) -> Iterator[None]:
        """Adds ``mask`` to what this thread computes meanwhile."""
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
        # What is added to attention's scores, [B, 1, 1, L]: the same for all heads and queries.
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        added = added.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]
        if bias is None:
            return forward(*args, **kwargs | {"attention_mask": added})
        with bias.adding(added):
            return forward(*args, **kwargs | {"attention_mask": None})

    return with_prepared_mask


def _equal(encoder: Any, expected: list[torch.Tensor]) -> bool:
    try:
        found = _answer(encoder)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if gpu_advice(error):
            raise  # the mask is not to blame; without it, features would have other last bits
        return False
    within = _TOLERANCE[encoder.dtype] * max(float(e.abs().max()) for e in expected)
    pairs = zip(found, expected, strict=True)
    return all(float((one - other).abs().max()) <= within for one, other in pairs)


@torch.inference_mode()
def _answer(encoder: Any) -> list[torch.Tensor]:
    """Each text's hidden states, float32 ``[length, D]``."""
    ids = torch.tensor(_IDS, device=encoder.device)
    lengths = torch.tensor(_LENGTHS, device=encoder.device)[:, None]
    mask = (torch.arange(ids.shape[1], device=encoder.device) < lengths).long()
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    return [row[:length] for row, length in zip(states, _LENGTHS, strict=True)]
