"""The paper's views by the paper's own means: torchvision's first transforms on a PIL image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.torchvision_ops import ensure_importable
from producers.kernels.exponential import WEIGHT_BITS, exponential, weight_arguments


def torch_has_the_recipes_exp() -> bool:
    """Whether torch's exp here is the one it has with AVX-512, which the recipe is defined by.

    Elsewhere it gives other last bits, and so, in about one view of seventy, another value.
    """
    bits = np.arange(WEIGHT_BITS.start, WEIGHT_BITS.stop, 997, dtype=np.int64).astype(np.uint32)
    exponents = weight_arguments(bits)
    return np.array_equal(
        torch.exp(torch.from_numpy(exponents)).numpy(), exponential().weights(exponents)
    )


recipes_exp = pytest.mark.skipif(
    not torch_has_the_recipes_exp(), reason="torch's exp has other last bits without AVX-512"
)


def reference_views(
    poster: Image.Image, index: int, views: Iterable[int], size: int = 224, taps: int = 23
) -> np.ndarray:
    """These views of one sample, with base seed 123.

    Returns:
        uint8 [views, size, size, 3].
    """
    ensure_importable()
    from torchvision import transforms as T

    recipe = T.Compose(
        [
            T.RandomResizedCrop(size, (0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(taps, (0.1, 2.0))], 0.5),
        ]
    )
    made = []
    for view in views:
        digest = hashlib.sha256(f"123:{index}:{view}:image".encode()).hexdigest()
        torch.manual_seed(int(digest[:8], 16))
        made.append(np.array(recipe(poster)))
    return np.stack(made)
