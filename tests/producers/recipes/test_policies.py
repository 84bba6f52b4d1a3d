"""The policies of torchvision, compared with torchvision's own pipelines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.images.geometry import ImageSpec, Poster
from producers.recipes.images.policies import RandAugment, TorchvisionPolicy, TrivialAugment
from producers.recipes.images.presets import image_recipe
from producers.recipes.images.recipe import ImageRecipe
from tests.conftest import ROOT
from tests.producers.reference import avx512_exp_and_log

SEEDS = st.integers(0, 2**32 - 1)


def noise(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height))).astype(int)
    pixels += rng.integers(-20, 20, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def made(recipe: ImageRecipe, image: Image.Image, size: int, seeds: list[int]) -> np.ndarray:
    out = np.empty((len(seeds), size, size, 3), np.uint8)
    recipe.make(Poster(image), ImageSpec(size, size), range(1, len(seeds) + 1), seeds, out)
    return out


def torchvisions(
    recipe: TorchvisionPolicy, policy: Any, image: Image.Image, size: int, seed: int
) -> np.ndarray:
    ensure_importable()
    from torchvision import transforms as T

    bicubic = T.InterpolationMode.BICUBIC
    crop = T.RandomResizedCrop(size, recipe.scale, recipe.ratio, interpolation=bicubic)
    pipeline = T.Compose([crop, T.RandomHorizontalFlip(recipe.flip), policy])
    with avx512_exp_and_log():
        torch.manual_seed(seed)
        return np.asarray(pipeline(image))


@st.composite
def crops(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.floats(0.02, 1.0))
    return {
        "scale": (low, draw(st.floats(low, 1.0))),
        # Without a square between them, torchvision cuts no pixel out of an image of one pixel.
        "ratio": (draw(st.floats(0.2, 1.0)), draw(st.floats(1.0, 5.0))),
        "flip": draw(st.sampled_from([0.0, 0.5, 1.0])),
    }


@settings(max_examples=60)
@given(
    crops(),
    st.integers(1, 4),
    st.integers(2, 40).flatmap(lambda bins: st.tuples(st.integers(0, bins - 1), st.just(bins))),
    SEEDS,
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([1, 17, 48]),
)
def test_randaugment_equals_torchvisions(
    crop: dict[str, Any],
    ops: int,
    strength: tuple[int, int],
    seed: int,
    shape: tuple[int, int],
    size: int,
) -> None:
    ensure_importable()
    from torchvision import transforms as T

    magnitude, bins = strength
    recipe = RandAugment(**crop, num_ops=ops, magnitude=magnitude, num_magnitude_bins=bins)
    image = noise(seed, *shape)
    expected = torchvisions(recipe, T.RandAugment(ops, magnitude, bins), image, size, seed)
    np.testing.assert_array_equal(made(recipe, image, size, [seed])[0], expected)


@settings(max_examples=60)
@given(
    crops(),
    st.integers(2, 40),
    SEEDS,
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from([1, 17, 48]),
)
def test_trivialaugment_equals_torchvisions(
    crop: dict[str, Any], bins: int, seed: int, shape: tuple[int, int], size: int
) -> None:
    ensure_importable()
    from torchvision import transforms as T

    recipe = TrivialAugment(**crop, num_magnitude_bins=bins)
    image = noise(seed, *shape)
    expected = torchvisions(recipe, T.TrivialAugmentWide(bins), image, size, seed)
    np.testing.assert_array_equal(made(recipe, image, size, [seed])[0], expected)


@pytest.mark.parametrize("recipe", [RandAugment(), TrivialAugment()], ids=lambda r: r.name)
def test_views_are_functions_of_their_seed_and_change_no_random_state(
    recipe: TorchvisionPolicy,
) -> None:
    image, seeds = noise(1, 70, 50), [5, 2**32 - 1, 7, 8, 9, 10]
    torch.manual_seed(77)
    before, state = torch.initial_seed(), torch.get_rng_state()
    views = made(recipe, image, 32, seeds)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.initial_seed() == before
    for view, seed in zip(views, seeds, strict=True):
        torch.rand(3)
        np.testing.assert_array_equal(made(recipe, image, 32, [seed])[0], view)
    assert len({view.tobytes() for view in views}) == len(seeds)


PROGRAM = """
import hashlib, json, sys
import numpy as np, torch
from PIL import Image
from producers.recipes.images.geometry import ImageSpec, Poster
from producers.recipes.images.policies import RandAugment, TrivialAugment

found = hashlib.sha256()
pixels = np.random.default_rng(3).integers(0, 256, (61, 80, 3), np.uint8)
for recipe in (RandAugment(num_ops=3, magnitude=17), TrivialAugment()):
    out = np.empty((100, 48, 48, 3), np.uint8)
    poster = Poster(Image.fromarray(pixels))
    recipe.make(poster, ImageSpec(48, 48), range(1, 101), range(100), out)
    found.update(out)
strengths = torch.linspace(0.0, 0.9, 31).numpy().tobytes().hex()
made = [torch.backends.cpu.get_cpu_capability(), strengths, found.hexdigest()]
"""


def test_views_do_not_depend_on_the_cpu() -> None:
    """torch's strengths do: it rounds them twice where it may not use fused arithmetic."""
    here: dict[str, Any] = {}
    exec(PROGRAM, here)
    if here["made"][0] == "DEFAULT":
        pytest.skip("torch has no other implementation here")
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}\nprint(json.dumps(made))"],
        cwd=ROOT,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=True,
    )
    capability, strengths, views = json.loads(done.stdout)
    assert capability == "DEFAULT"
    assert strengths != here["made"][1]
    assert views == here["made"][2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "randaugment", "num_ops": 0}, "num_ops is at least 1, found 0"),
        ({"name": "randaugment", "magnitude": 31}, "0 to num_magnitude_bins - 1 = 30, found 31"),
        ({"name": "randaugment", "magnitude": -1}, "found -1"),
        ({"name": "randaugment", "num_magnitude_bins": 1}, "at least 2, found 1"),
        ({"name": "trivialaugment", "num_magnitude_bins": 1}, "at least 2, found 1"),
        ({"name": "trivialaugment", "magnitude": 3}, "does not have magnitude"),
        ({"name": "randaugment", "scale": [0.5, 0.2]}, "scale"),
        ({"name": "randaugment", "magnitude": 9.5}, "a whole number"),
    ],
)
def test_a_bad_parameter_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_recipe(values)


def test_a_missing_torchvision_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "torchvision" else honest(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(ConfigError, match=r"randaugment needs torchvision.*\n.*pip install"):
        image_recipe({"name": "randaugment"})


def test_recorded_settings_make_the_recipe_again() -> None:
    from producers.recipes.images.presets import recorded_image_recipe

    recipe = RandAugment(num_ops=3, flip=0.25)
    assert recorded_image_recipe(recipe.settings()) == recipe
    assert image_recipe(recipe.values()) == recipe
