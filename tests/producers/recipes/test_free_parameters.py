"""Recipes with any parameters equal torchvision's first transforms on a PIL image.

torch's exp and log are replaced by those of AVX-512 where the CPU has others.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurestore.errors import ConfigError
from producers.kernels import library
from producers.kernels.draws import CropRanges, Range, draw
from producers.kernels.implementations import Kernels, has_compiled, implementation
from producers.recipes.images.geometry import ImageSpec, Poster
from producers.recipes.images.presets import image_recipe
from producers.recipes.images.random_crops import Crop, Multicrop, Simclr
from producers.recipes.images.recipe import ImageRecipe
from tests.conftest import NIGHTLY
from tests.producers.pictures import photo
from tests.producers.reference import torchvision_view

CASES = 1000 if NIGHTLY else 20
# Blurs have 1, 3, 5, 7 and more taps at sizes from 1, 30, 50, 70 and so on.
SIZES = (1, 9, 29, 31, 49, 50, 64, 79, 80, 111, 224)
SIDES = (1, 1, 2, 3, 7, 16, 40, 61, 113, 200)
IMPLEMENTATIONS: list[Kernels] = [library]
if has_compiled():
    IMPLEMENTATIONS.insert(0, implementation(compiled_code=True))


class Random(random.Random):
    """Random numbers with their limits among them."""

    def between(self, low: float, high: float) -> float:
        """A number, often one of the limits, or one of another order of magnitude."""
        if self.random() < 0.2:
            return self.choice((low, high))
        if low > 0 and self.random() < 0.5:
            return float(low * (high / low) ** self.random())
        return self.uniform(low, high)

    def two(self, low: float, high: float) -> tuple[float, float]:
        """Two numbers in ascending order."""
        first, second = sorted((self.between(low, high), self.between(low, high)))
        return first, second

    def crop(self) -> dict[str, Any]:
        """Parameters of every recipe of random crops."""
        ratio = (3.0 / 4.0, 4.0 / 3.0) if self.random() < 0.3 else self.two(0.02, 50.0)
        return {"ratio": ratio, "flip": self.between(0.0, 1.0)}

    def recipe(self, kind: type[Crop | Multicrop]) -> Crop | Multicrop:
        """A recipe with any parameters."""
        if kind is Multicrop:
            crops, scales = self.randrange(6), [self.two(1e-4, 1.0) for _ in range(2)]
            return Multicrop(crops, global_scale=scales[0], local_scale=scales[1], **self.crop())
        if kind is Crop:
            return Crop(self.two(1e-4, 1.0), **self.crop())
        # A strength of 1e-17 changes nothing, and torchvision does not draw its factor.
        light, contrast, colour = (
            self.choice((0.0, 1e-17, self.between(0.0, 4.0))) for _ in range(3)
        )
        return Simclr(
            self.two(1e-4, 1.0),
            **self.crop(),
            jitter=(light, contrast, colour, self.between(0.0, 0.5)),
            jitter_probability=self.choice((1.0, self.between(0.0, 1.0))),
            gray=self.between(0.0, 1.0),
            blur=self.choice((1.0, self.between(0.0, 1.0))),
            sigma=self.two(0.001, 10.0),
        )

    def poster(self) -> Image.Image:
        """Noise, a photograph, or noise of few colours, of any shape."""
        width, height = self.choice(SIDES), self.choice(SIDES)
        if self.random() < 0.3:
            return photo("china", (width, height))
        values = np.frombuffer(self.randbytes(3 * width * height), np.uint8)
        values = values if self.random() < 0.5 else values // 86 * 85
        return Image.fromarray(values.reshape(height, width, 3))


def has_pixels(recipe: Crop | Multicrop, width: int, height: int) -> bool:
    """Whether the crop that torchvision falls back to has any."""
    low, high = recipe.ratio
    return low <= width / height <= high or (round(width / low) > 0 and round(height * high) > 0)


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("kind", [Crop, Multicrop, Simclr])
def test_views_are_torchvisions_whatever_the_parameters(
    kind: type[Crop | Multicrop], case: int
) -> None:
    chosen = Random(f"{kind.name} {case}")
    recipe, poster, size = chosen.recipe(kind), chosen.poster(), chosen.choice(SIZES)
    views = [1, 4]
    seeds = [chosen.randrange(2**32) for _ in views]
    made = []
    for kernels in IMPLEMENTATIONS:
        out = np.full((len(views), size, size, 3), 7, np.uint8)
        recipe.make(Poster(poster, kernels), ImageSpec(size, size), views, seeds, out)
        made.append(out)
    for each in made[1:]:
        np.testing.assert_array_equal(each, made[0])
    if has_pixels(recipe, *poster.size):
        for view, seed, pixels in zip(views, seeds, made[0], strict=True):
            expected = torchvision_view(recipe, view, seed, poster, size)
            np.testing.assert_array_equal(pixels, expected, f"{recipe} {poster.size} {seed}")


def test_crops_lie_in_the_poster_and_are_no_strips() -> None:
    """Pillow resizes the rows of a strip, of more than 100 rows for each column, first."""
    chosen = Random(0)
    cases: list[tuple[Range, Range, int, int]] = [
        ((1e-4, 1e-4), (0.02, 0.02), 15, 3000),
        ((1e-4, 1e-3), (0.02, 0.02), 40, 900),
        *(((1.0, 1.0), ratio, 30, 2999) for ratio in ((0.02, 0.02), (50.0, 50.0))),
        *(((1.0, 1.0), ratio, 24, 1) for ratio in ((0.02, 0.02), (50.0, 50.0))),
        *(((1.0, 1.0), ratio, 1, 1000) for ratio in ((0.02, 0.02), (50.0, 50.0))),
    ]
    for _ in range(5 * CASES):
        sides = [round(chosen.between(1, 3000)) for _ in range(2)]
        cases.append((chosen.two(1e-4, 1.0), chosen.two(0.02, 50.0), sides[0], sides[1]))
    ratios = []
    for number, (scale, ratio, width, height) in enumerate(cases):
        for drawn in draw(range(number, number + 9), width, height, CropRanges(scale, ratio, 0.5)):
            left, top, w, h = drawn.box
            assert 0 <= left < left + w <= width
            assert 0 <= top < top + h <= height
            ratios.append(h / w)
    assert max(ratios) <= 75
    assert max(ratios) > 50 > 0.02 > min(ratios)  # the limits are tried, and rounding widens them


def test_a_crop_without_pixels_has_one() -> None:
    """torchvision fails where the ratio leaves no pixel of the shorter side."""
    for ratio, shape, box in (
        ((0.02, 0.02), (100, 24), (49, 0, 1, 24)),
        ((50.0, 50.0), (24, 100), (0, 49, 24, 1)),
        ((2.0, 3.0), (1, 1), (0, 0, 1, 1)),
    ):
        [drawn] = draw([1], *shape, CropRanges((1.0, 1.0), ratio, 0.0))
        assert drawn.box == box


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("crop", {"scale": (0.2, 1), "flip": 0}),
        ("multicrop", {"global_crops": 0, "local_scale": [0.1, 0.1]}),
        ("simclr", {"jitter": (0, 1.5, 0, 0.5), "sigma": (0.1, 10)}),
    ],
)
def test_parameters_are_those_that_were_given(name: str, taken: dict[str, Any]) -> None:
    recipe = image_recipe({"name": name, **taken})
    for key, value in taken.items():
        assert np.array_equal(getattr(recipe, key), value)
    assert image_recipe(recipe.values()) == recipe


WRONG: list[tuple[type[ImageRecipe], str, Any]] = [
    (Crop, "scale", (0.0, 1.0)),
    (Crop, "scale", (0.5, 0.4)),
    (Crop, "scale", (0.5, 1.01)),
    (Crop, "scale", (float("nan"), 1.0)),
    (Crop, "ratio", (0.019, 1.0)),
    (Crop, "ratio", (1.0, 51.0)),
    (Crop, "flip", 1.1),
    (Crop, "flip", float("nan")),
    (Multicrop, "global_crops", -1),
    (Multicrop, "global_scale", (0.0, 1.0)),
    (Multicrop, "local_scale", (0.4, 0.05)),
    (Multicrop, "ratio", (0.019, 1.0)),
    (Multicrop, "flip", -0.1),
    (Simclr, "jitter", (float("nan"), 0.4, 0.4, 0.1)),
    (Simclr, "jitter", (0.4, -0.1, 0.4, 0.1)),
    (Simclr, "jitter", (0.4, 0.4, 1e30, 0.1)),
    (Simclr, "jitter", (0.4, 0.4, 0.4, 0.6)),
    (Simclr, "jitter_probability", 2.0),
    (Simclr, "gray", -1.0),
    (Simclr, "blur", 1.5),
    (Simclr, "sigma", (1e-50, 1.0)),
    (Simclr, "sigma", (1.0, float("inf"))),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_what_is_out_of_range_is_refused_by_its_name(
    kind: type[ImageRecipe], name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"\[recipe.image\] {name} is .*found"):
        kind(**{name: value})
