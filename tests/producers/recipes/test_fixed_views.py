"""Recipes of a fixed number of views: mirror images, and the corners of torchvision's FiveCrop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.errors import BadSampleError, ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from producers.kernels import library
from producers.kernels.implementations import has_compiled, implementation
from producers.recipes.images.fixed import CleanImage, FiveCrop, Flip, TenCrop
from producers.recipes.images.geometry import ImageSpec, Poster, clean_view
from producers.recipes.images.presets import image_recipe
from producers.recipes.images.random_crops import Multicrop
from producers.recipes.images.recipe import ImageRecipe
from producers.slots import Ring
from producers.sources.pairs import scan
from producers.worker import Job, Producer
from tests.producers.pictures import photo

SHAPES = [(300, 450), (450, 301), (256, 256), (255, 400), (97, 61)]
EXTREMES = [(1, 1), (3, 700), (701, 3)]
# The size of a view, and the shortest edge: 8/7 of it, rounded.
EDGES = [(224, 256), (336, 384), (384, 439), (31, 35), (7, 8), (3, 3), (1, 1)]
KERNELS = [library] + ([implementation(compiled_code=True)] if has_compiled() else [])


def made(recipe: ImageRecipe, poster: Poster | Image.Image, spec: ImageSpec) -> np.ndarray:
    """All views but the clean one."""
    assert recipe.fixed_views is not None
    poster = poster if isinstance(poster, Poster) else Poster(poster)
    views = range(1, recipe.fixed_views)
    out = np.full((len(views), spec.size, spec.size, 3), 7, np.uint8)
    recipe.make(poster, spec, views, [0] * len(views), out)
    return out


def torchvisions(poster: Image.Image, size: int, edge: int) -> np.ndarray:
    """The four corners and the centre by torchvision, uint8 [5, size, size, 3]."""
    ensure_importable()
    from torchvision import transforms as T

    resized = T.Resize(edge, T.InterpolationMode.BICUBIC)(poster)
    return np.stack([np.asarray(each) for each in T.FiveCrop(size)(resized)])


@pytest.mark.parametrize(("size", "edge"), EDGES)
def test_corners_are_torchvisions(size: int, edge: int) -> None:
    for number, shape in enumerate(SHAPES + EXTREMES * (size < 100)):
        poster = photo(["china", "coffee", "astronaut"][number % 3], shape)
        expected = torchvisions(poster, size, edge)[:4]
        for kernels in KERNELS:
            found = made(FiveCrop(), Poster(poster, kernels), ImageSpec(size, size))
            np.testing.assert_array_equal(found, expected, str(shape))


@pytest.mark.parametrize("spec", [ImageSpec(64, 64), ImageSpec(64, None), ImageSpec(64, 73, 2)])
def test_ten_crops_are_five_and_their_mirror_images(spec: ImageSpec) -> None:
    poster = photo("china", (90, 120))
    five = [clean_view(poster, spec), *torchvisions(poster, 64, 73)[:4]]
    expected = np.stack([*five, *(view[:, ::-1] for view in five)])[1:]
    np.testing.assert_array_equal(made(TenCrop(), poster, spec), expected)
    # The clean view has its own geometry and filter; it is not torchvision's centre.
    assert not np.array_equal(five[0], five[1])


def test_views_are_made_in_any_order_and_alone() -> None:
    poster, spec = Poster(photo("china", (90, 120))), ImageSpec(32, 32)
    for recipe in (FiveCrop(), TenCrop(), Flip()):
        whole = made(recipe, poster, spec)
        for chosen in ([len(whole)], range(len(whole), 0, -1)):
            out = np.full((len(chosen), 32, 32, 3), 7, np.uint8)
            recipe.make(poster, spec, chosen, [0] * len(chosen), out)
            np.testing.assert_array_equal(out, whole[[view - 1 for view in chosen]])


def test_which_recipes_have_the_same_pixels_for_all_models_of_a_size() -> None:
    """Those that do not say so begin with the clean view, which differs."""
    poster = photo("china", (90, 120))
    for recipe in (FiveCrop(), TenCrop(), Flip()):
        square, centre = (made(recipe, poster, ImageSpec(64, edge)) for edge in (None, 64))
        assert np.array_equal(square, centre) is recipe.is_shared
    assert [kind.is_shared for kind in (FiveCrop, TenCrop, Flip)] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "views"), [("none", 1), ("flip", 2), ("fivecrop", 5), ("tencrop", 10)]
)
def test_the_number_of_views_is_fixed(name: str, views: int) -> None:
    recipe = image_recipe({"name": name})
    assert recipe.fixed_views == views
    assert made(recipe, photo("china", (40, 30)), ImageSpec(8, 8)).shape == (views - 1, 8, 8, 3)
    with pytest.raises(ConfigError, match=rf"{name} does not have flip"):
        image_recipe({"name": name, "flip": 1})


@pytest.mark.parametrize("recipe", [FiveCrop(), TenCrop()])
def test_a_strip_too_thin_to_resize_is_refused_before_it_is_allocated(recipe: ImageRecipe) -> None:
    for shape in ((1, 20_000), (20_000, 1)):
        with pytest.raises(BadSampleError, match=r"too-large: .* would be resized to"):
            made(recipe, Image.new("RGB", shape, "red"), ImageSpec(224, None))


@pytest.mark.parametrize("first_view", [0, 2])
def test_such_a_strip_is_a_bad_input_whichever_views_are_computed(
    tmp_path: Path, first_view: int
) -> None:
    """Although a clean view that ignores the aspect ratio would be possible."""
    Image.new("RGB", (1, 20_000), "red").save(tmp_path / "0.jpg", quality=95)
    (tmp_path / "0.json").write_text(json.dumps({"plot": "a"}))
    found = scan(tmp_path)
    specs, recipe = (ImageSpec(224, None), ImageSpec(224, 224)), FiveCrop().values()
    for images in (specs[:1], specs):
        job = Job(
            found.places.source, 5, 1, images, (), 1, first_view=first_view, image_recipe=recipe
        )
        ring = Ring(job.layout, 1)
        [slot] = ring.slots
        for views in slot.augmented.values():
            views.fill(7)
        [bad] = Producer(job).produce(found.samples[0], slot, {})["bad"]
        assert bad[:2] == ["image", "too-large"]
        assert not any(views.any() for views in (*slot.augmented.values(), *slot.clean.values()))
        ring.close()


def test_multicrop_has_global_crops_first() -> None:
    recipe = Multicrop(3, (0.5, 1.0), (0.05, 0.2))
    views, seeds = [5, 1, 2, 3, 4, 9], [5, 1, 2, 3, 4, 9]
    drawn = recipe.draws(views, seeds, 1000, 1000)
    areas = [each.box[2] * each.box[3] / 1e6 for each in drawn]
    assert [area > 0.45 for area in areas] == [view <= 3 for view in views]
    assert all(area < 0.21 for area, view in zip(areas, views, strict=True) if view > 3)
    assert drawn == [recipe.draws([view], [view], 1000, 1000)[0] for view in views]
    assert recipe.is_shared
    assert recipe.fixed_views is None


def test_no_view_beside_the_clean_one_is_possible_without_a_recipe() -> None:
    assert made(CleanImage(), photo("china", (40, 30)), ImageSpec(8, 8)).shape == (0, 8, 8, 3)
