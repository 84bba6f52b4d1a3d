"""A convolution of whole patches equals its matrix product; other ones are not replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.backbones import registry
from consumers.checkpoints.patches import multiply_patches
from tests.consumers.conftest import KINDS


@pytest.mark.parametrize("kernel", [1, 2, 14, (3, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 28, 30), (1, 3, 15, 44)])
def test_a_product_is_the_convolution(kernel: Any, bias: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    conv = torch.nn.Conv2d(3, 7, kernel, stride=kernel, bias=bias).double()
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = conv(pixels)
    multiply_patches(conv)
    assert "forward" in vars(conv)
    found = conv(pixels)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 1},
        {"stride": (2, 1)},
        {"padding": 1},
        {"padding": "same", "stride": 1},
        {"dilation": 2},
        {"groups": 3},
    ],
    ids=str,
)
def test_windows_that_overlap_or_are_padded_are_left_alone(changes: dict[str, Any]) -> None:
    conv = torch.nn.Conv2d(3, 6, 2, **{"stride": 2, **changes})
    multiply_patches(torch.nn.Sequential(conv))
    assert "forward" not in vars(conv)


@pytest.mark.parametrize("feature", ["clip_image", "blip2_image"])
def test_a_backbone_computes_the_same(
    backbone: Callable[[str], Any],
    tiny_folders: dict[str, Path],
    pictures: np.ndarray,
    feature: str,
) -> None:
    model: Any = registry.load(feature, str(tiny_folders[KINDS[feature]]), "cpu", "float32")
    multiply_patches(model._network)
    assert sum("forward" in vars(module) for module in model._network.modules()) == 1
    pixels = torch.from_numpy(pictures[:4])
    torch.testing.assert_close(
        model.embed(pixels), backbone(feature).embed(pixels), rtol=1e-4, atol=1e-5
    )
