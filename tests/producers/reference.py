"""The paper's views by the paper's code: torchvision's first transforms on a PIL image.

The recipe is defined by torchvision on a CPU with AVX-512. Elsewhere torch's ``exp`` and ``log``
have other last bits, and one view in 500 another value, so there the views are compared with
digests of torchvision's, which ``tools/view_digests.py`` recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.system.torchvision_ops import ensure_importable
from producers.kernels import exponential
from producers.recipes.images.random_crops import Crop, Multicrop, Simclr

RATIOS = (3.0 / 4.0, 4.0 / 3.0)
RECORDED = Path(__file__).with_name("torchvision_digests.json")
# Where ``tools/view_digests.py`` has the digests written to; the tests then compare with nothing.
RECORDING = os.environ.get("MANYVIEWS_RECORD_DIGESTS", "")


@cache
def torch_is_the_recipes() -> bool:
    """Whether torch's exp, and so its log, is the version for AVX-512 on this machine."""
    exponents = np.linspace(-87, 3, 1_000_000, dtype=np.float32)
    found = torch.exp(torch.from_numpy(exponents)).numpy()
    return np.array_equal(found, exponential.exp(exponents))


recipes_exp = pytest.mark.skipif(
    not torch_is_the_recipes(),
    reason="compares torch's own exp and log, which are the recipe's with AVX-512 only",
)


def digest(*values: Image.Image | np.ndarray) -> str:
    """A digest of the values, 32 hexadecimal digits."""
    found = hashlib.sha256()
    for value in values:
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()[:32]


def require_torchvisions(
    case: str,
    made: np.ndarray,
    inputs: Iterable[Image.Image | np.ndarray],
    make: Callable[[], np.ndarray],
) -> None:
    """Asserts that values equal torchvision's on a CPU with AVX-512.

    Args:
        case: the name under which their digest is recorded.
        made: the values.
        inputs: what they were made of, whose digest is recorded as well.
        make: makes them with torchvision.
    """
    given = digest(*inputs)
    if RECORDING:
        with avx512_exp_and_log():
            found = {"inputs": given, "made": digest(make())}
        with Path(RECORDING).open("a", encoding="ascii") as file:
            file.write(json.dumps([case, found]) + "\n")
        return
    if torch_is_the_recipes():
        np.testing.assert_array_equal(made, make())
    recorded = json.loads(RECORDED.read_text("ascii"))[case]
    assert given == recorded["inputs"], "other inputs: record their digests again"
    assert digest(made) == recorded["made"]


@contextmanager
def avx512_exp_and_log() -> Iterator[None]:
    """Inside, torch's exp and log are those that it has with AVX-512; torch's own where it has it.

    Torchvision calls exp for a crop's ratio and a blur's weights, and log for the two ratios.
    """
    if torch_is_the_recipes():
        yield
        return

    def exp(tensor: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(exponential.exp(tensor.numpy()))

    def log(tensor: torch.Tensor) -> torch.Tensor:
        return torch.tensor([float(exponential.log(bound)) for bound in tensor.tolist()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "exp", exp)
        patch.setattr(torch, "log", log)
        yield


def torchvision_view(
    recipe: Crop | Multicrop, view: int, seed: int, poster: Image.Image, size: int
) -> np.ndarray:
    """One view by torchvision's own transforms, uint8 [size, size, 3]."""
    ensure_importable()
    from torchvision import transforms as T

    if isinstance(recipe, Multicrop):
        is_global = view <= recipe.global_crops
        scale = recipe.global_scale if is_global else recipe.local_scale
    else:
        scale = recipe.scale
    bicubic = T.InterpolationMode.BICUBIC
    steps = [
        T.RandomResizedCrop(size, scale, recipe.ratio, interpolation=bicubic),
        T.RandomHorizontalFlip(recipe.flip),
    ]
    if isinstance(recipe, Simclr):
        steps += [
            T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability),
            T.RandomGrayscale(recipe.gray),
            T.RandomApply([T.GaussianBlur(_taps(size), recipe.sigma)], recipe.blur),
        ]
    torch.manual_seed(seed)
    with avx512_exp_and_log():
        return np.array(T.Compose(steps)(poster))


def _taps(size: int) -> int:
    """A tenth of the size, the next odd number if it is even, as in SimCLR."""
    whole = size // 10
    return whole if whole % 2 else whole + 1


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
        seed = hashlib.sha256(f"123:{index}:{view}:image".encode()).hexdigest()
        torch.manual_seed(int(seed[:8], 16))
        made.append(np.array(recipe(poster)))
    return np.stack(made)
