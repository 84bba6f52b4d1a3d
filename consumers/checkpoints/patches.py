"""Replaces convolutions of whole patches by equivalent matrix products.

If there is not enough memory for its workspace, cuDNN silently uses another engine for a
convolution from then on, which gives other last bits. A matrix product is computed by cuBLAS, which
raises an error instead, and the batch is tried again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def multiply_patches(network: Any) -> None:
    """Replaces every convolution of a network whose windows do not overlap by a product."""
    for module in network.modules():
        # Subclasses are excluded: they may pad or scale differently.
        if type(module) is torch.nn.Conv2d and _takes_patches(module):
            module.forward = functools.partial(_product, module)  # type: ignore[method-assign]


def _takes_patches(conv: torch.nn.Conv2d) -> bool:
    return (
        conv.stride == conv.kernel_size
        and conv.padding in ((0, 0), "valid")
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )


def _product(conv: torch.nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
    """The convolution of ``[B, C, H, W]``; returns ``[B, D, rows, columns]``."""
    (high, wide), (batch, channels) = conv.kernel_size, pixels.shape[:2]
    rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
    whole = pixels[..., : rows * high, : columns * wide]
    patches = whole.reshape(batch, channels, rows, high, columns, wide)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
    features = torch.nn.functional.linear(patches, conv.weight.flatten(1), conv.bias)
    return features.transpose(1, 2).reshape(batch, -1, rows, columns)
