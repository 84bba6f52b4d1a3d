"""Tests a custom backbone before a build starts: two rows, embedded twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from consumers.backbones.protocol import Backbone, BackboneRequest, modality_of
from consumers.device.computing import ComputePool, Order
from featurestore.errors import ConfigError, ManyViewsError
from featurestore.wording import one_line
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts.tokens import TextSpec, TokenEncoder

_T = TypeVar("_T")
_ROWS = 2
# Maximum number of times that two threads embed at once, and for how many seconds.
_BESIDE, _BESIDE_S = 16, 1.0
_ATTRIBUTES = ("feature", "model", "fingerprint", "dim", "device", "dtype", "embed")
# The types of these attributes; device and dtype are those of the request.
_TYPES = {"feature": str, "model": str, "fingerprint": str, "dim": int}


def check_backbone(request: BackboneRequest, adapter: str, backbone: Backbone) -> None:
    """Refuses an invalid backbone, or one that does not give equal rows equal vectors.

    Args:
        request: the arguments of the adapter.
        adapter: name of the adapter, for messages.
        backbone: the return value of the adapter.

    Raises:
        ConfigError: an attribute is missing or of another type, or ``embed`` returns another shape
            or dtype than documented, values that are not finite, or other values on a second call
            or while another thread embeds.
    """

    def error(problem: str) -> ConfigError:
        return ConfigError(
            f"[backbones.{request.feature}]: the adapter {adapter} returned a backbone {problem}."
        )

    absent = [name for name in _ATTRIBUTES if not hasattr(backbone, name)]
    if absent:
        raise error(f"without {', '.join(absent)}")
    for name, expected in _TYPES.items():
        value = getattr(backbone, name)
        if type(value) is not expected or (not value and name != "model"):
            raise error(f"whose {name} is {value!r}, expected {expected.__name__}")
    if backbone.feature != request.feature:
        raise error(f"for {backbone.feature!r}")
    specs = {"image": ImageSpec, "text": TextSpec}
    given = [
        name for name, kind in specs.items() if isinstance(getattr(backbone, name, None), kind)
    ]
    if len(given) != 1:
        raise error("that has not one of image (an ImageSpec) and text (a TextSpec)")
    batch = _images(backbone) if modality_of(backbone) == "image" else _texts(backbone)
    if not batch[0].shape[1]:
        raise error("whose tokenizer returns no token ids for an empty text: expected at least one")

    def tried(call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (ManyViewsError, MemoryError):
            raise
        except Exception as failure:
            shape = list(batch[0].shape)
            problem = f"that cannot embed {shape}:\n{type(failure).__name__}: {one_line(failure)}"
            raise error(problem) from failure

    first, second = tried(lambda: [backbone.embed(*batch) for _ in range(2)])
    problem = _problem(first, backbone.dim)
    if problem:
        raise error(f"that gives {problem}")
    if not torch.equal(first, second):
        raise error(
            "that gives the same rows other features the second time:\n"
            "it draws at random, or was left in training mode"
        )
    if backbone.device.type == "cpu" and not tried(lambda: _agrees_with_itself(backbone, batch)):
        raise error(
            "that gives other features where two threads embed at once:\n"
            "it keeps something of a batch where another thread finds it"
        )


def _agrees_with_itself(backbone: Any, batch: tuple[torch.Tensor, ...]) -> bool:
    """Whether rows get the same features while another thread embeds a batch of another shape."""
    calls = [partial(backbone.embed, *b) for b in (batch, _first_row(batch))]
    with ComputePool(1, backbone.device) as pool:
        alone = [pool.submit(Order.TEXTS, call).result() for call in calls]
    end = time.monotonic() + _BESIDE_S
    with ComputePool(2, backbone.device) as pool:
        for _ in range(_BESIDE):
            beside = [pool.submit(Order.TEXTS, call) for call in calls]
            if not all(torch.equal(f.result(), a) for f, a in zip(beside, alone, strict=True)):
                return False
            if time.monotonic() > end:  # two forward passes of a large model overlap long enough
                break
    return True


def _first_row(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first row of a batch; a text's row without its padding."""
    if len(batch) == 1:
        return (batch[0][:1],)
    ids, mask = batch
    length = int(mask[0].sum())
    return ids[:1, :length], mask[:1, :length]


def _images(backbone: Any) -> tuple[torch.Tensor]:
    side = backbone.image.size
    values = torch.arange(_ROWS * side * side * 3, dtype=torch.int64) * 2654435761 % 251
    return (values.to(torch.uint8).view(_ROWS, side, side, 3).to(backbone.device),)


def _texts(backbone: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The empty text and one of the full length; no columns if the empty text has no token."""
    spec = backbone.text
    ids = np.empty((_ROWS, spec.max_length), np.int32)
    lengths = np.empty(_ROWS, np.int32)
    TokenEncoder(spec).encode(["", "a " * spec.max_length], ids, lengths)
    longest = int(lengths.max()) if lengths.min() else 0
    tokens = torch.from_numpy(ids[:, :longest]).long()
    mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    return tokens.to(backbone.device), mask.long().to(backbone.device)


def _problem(rows: Any, dim: int) -> str:
    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.float32:
        return f"{getattr(rows, 'dtype', type(rows).__name__)} instead of a float32 tensor"
    if tuple(rows.shape) != (_ROWS, dim):
        return f"{list(rows.shape)} for {_ROWS} rows, expected {[_ROWS, dim]}"
    bad = int((~torch.isfinite(rows)).any(dim=1).sum())
    return f"values that are not finite in {bad} of {_ROWS} rows" if bad else ""
