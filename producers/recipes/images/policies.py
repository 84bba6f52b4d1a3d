"""torchvision's policies of random operations, behind a random crop.

They are torchvision's own code, on a Pillow image; the crop is made by this project's kernels. Only
these recipes import torch and torchvision in producers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from producers.kernels import draws
from producers.kernels.draws import CropRanges
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster
from producers.recipes.images.random_crops import Crop, apply
from producers.recipes.images.recipe import check_out

if TYPE_CHECKING:
    import torch

Policy = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class TorchvisionPolicy(Crop):
    """A random crop, a mirrored half, and a policy of torchvision."""

    draws_all: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the ranges, and that torchvision is installed.

        Raises:
            ConfigError: a value is out of range, or torchvision is not installed.
        """
        super().__post_init__()
        if importlib.util.find_spec("torchvision") is None:
            raise ConfigError(
                f"[recipe.image] {self.name} needs torchvision, which is not installed.\n"
                "Install it with pip install torchvision, or choose another recipe."
            )

    def policy(self) -> Policy:
        """The policy, whose random draws are those of torch's default generator."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Imports torch and torchvision, which takes seconds."""
        self.policy()

    def libraries(self) -> frozenset[str]:
        """Those that draw, and that change pixels."""
        return frozenset({"torch", "torchvision", "pillow"})

    def make(
        self,
        poster: Poster,
        spec: ImageSpec,
        views: Sequence[int],
        seeds: Sequence[int],
        out: Pixels,
    ) -> None:
        """Makes views; see :class:`ImageRecipe`."""
        check_out(out, views, spec)
        policy, crop = self.policy(), CropRanges(self.scale, self.ratio, self.flip)
        for seed, view in zip(seeds, out, strict=True):
            drawn, words = draws.words_of_crop(seed, *poster.image.size, crop)
            apply(poster, drawn, view)
            view[:] = np.asarray(_changed(policy, Image.fromarray(view), seed, words))


@dataclass(frozen=True)
class RandAugment(TorchvisionPolicy):
    """A random crop, then some operations of one strength: torchvision's RandAugment.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width divided by height of the crop.
        flip: probability that a view is mirrored.
        num_ops: number of operations, at least 1.
        magnitude: strength of the operations, from 0 to ``num_magnitude_bins`` - 1.
        num_magnitude_bins: number of strengths, at least 2.
    """

    name: ClassVar[str] = "randaugment"
    version: ClassVar[int] = 1

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: a value is out of range, or torchvision is not installed.
        """
        super().__post_init__()
        _require_at_least("num_ops", self.num_ops, 1)
        _require_at_least("num_magnitude_bins", self.num_magnitude_bins, 2)
        if not 0 <= self.magnitude < self.num_magnitude_bins:
            raise ConfigError(
                "[recipe.image] magnitude is from 0 to num_magnitude_bins - 1 = "
                f"{self.num_magnitude_bins - 1}, found {self.magnitude}."
            )

    def policy(self) -> Policy:
        """The policy RandAugment of torchvision."""
        return _policy(
            "RandAugment",
            num_ops=self.num_ops,
            magnitude=self.magnitude,
            num_magnitude_bins=self.num_magnitude_bins,
        )


@dataclass(frozen=True)
class TrivialAugment(TorchvisionPolicy):
    """A random crop, then one operation of a random strength: torchvision's TrivialAugmentWide.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width divided by height of the crop.
        flip: probability that a view is mirrored.
        num_magnitude_bins: number of strengths, at least 2.
    """

    name: ClassVar[str] = "trivialaugment"
    version: ClassVar[int] = 1

    num_magnitude_bins: int = 31

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: a value is out of range, or torchvision is not installed.
        """
        super().__post_init__()
        _require_at_least("num_magnitude_bins", self.num_magnitude_bins, 2)

    def policy(self) -> Policy:
        """The policy TrivialAugmentWide of torchvision."""
        return _policy("TrivialAugmentWide", num_magnitude_bins=self.num_magnitude_bins)


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"[recipe.image] {name} is at least {least}, found {value}.")


@cache
def _policy(name: str, **parameters: int) -> Policy:
    """A policy of torchvision, with the strengths that it has on a CPU with fused arithmetic."""
    ensure_importable()
    import torch
    from torchvision.transforms import autoaugment

    made = getattr(autoaugment, name)(**parameters)
    space = made._augmentation_space

    def exact(*arguments: Any) -> dict[str, tuple[torch.Tensor, bool]]:
        return {
            operation: (torch.from_numpy(_spaced(strengths.numpy())), is_signed)
            if strengths.ndim and strengths.is_floating_point()
            else (strengths, is_signed)
            for operation, (strengths, is_signed) in space(*arguments).items()
        }

    made._augmentation_space = exact
    return made  # type: ignore[no-any-return]  # torchvision has no annotations


def _spaced(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``torch.linspace`` with the same ends, each value rounded once, on every CPU.

    torch rounds once where a CPU multiplies and adds in one instruction, and twice elsewhere.
    """
    count = len(values)
    step = float((values[-1] - values[0]) / np.float32(count - 1))
    start, end, at = float(values[0]), float(values[-1]), np.arange(count)
    exact = np.where(at < count // 2, start + step * at, end - step * (count - 1 - at))
    return exact.astype(np.float32)


def _changed(policy: Policy, image: Image.Image, seed: int, words: int) -> Image.Image:
    """Applies a policy with torch's default generator, whose state is restored.

    Args:
        policy: the policy.
        image: the crop.
        seed: the seed of the view.
        words: number of 32-bit words that the crop's draws have taken.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        torch.randint(2, (words,))  # takes one word for each number
        return policy(image)
