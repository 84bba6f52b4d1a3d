"""Thousands of views of photographs and drawn posters, without one value that is not the paper's.

All of them are compared with digests of torchvision's, which ``tools/view_digests.py`` recorded.
Where torch has AVX-512, one of each picture is compared with torchvision itself; at night all.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from producers.kernels import library
from producers.kernels.implementations import Kernels
from producers.recipes.images.random_crops import Simclr
from tests.conftest import NIGHTLY
from tests.producers.pictures import names, picture
from tests.producers.reference import digest, reference_views, torch_is_the_recipes
from tests.producers.views import augmented_views

VIEWS = range(1, 35)
DIGESTS = Path(__file__).with_name("view_digests.json")
RECORDED = json.loads(DIGESTS.read_text("ascii"))


def make(name: str, kernels: Kernels | None = None, views: int = VIEWS.stop) -> np.ndarray:
    """Views 1.. of the picture."""
    out = np.full((views - 1, 224, 224, 3), 7, np.uint8)
    index = names().index(name)
    augmented_views(
        picture(name), size=224, base_seed=123, index=index, views=views, out=out, kernels=kernels
    )
    return out


def shapes() -> list[tuple[int, int]]:
    """Width and height of the pictures that are not whole photographs."""
    given = (name.partition(" ")[2] for name in names())
    sides = (shape.split("x") for shape in given if shape)
    return [(int(width), int(height)) for width, height in sides]


def test_the_pictures_are_many_and_of_all_sizes() -> None:
    assert len(RECORDED) == len(names()) >= 60
    assert len(RECORDED) * len(VIEWS) >= 2000
    assert {(40, 60), (3000, 2000), (1, 1), (1, 300), (300, 1)} <= set(shapes())


@pytest.mark.parametrize("name", names())
def test_every_view_is_what_torchvision_made(name: str) -> None:
    recorded = RECORDED[name]
    assert digest(picture(name)) == recorded["picture"], "another picture: record its views again"
    made = make(name)
    assert digest(made) == recorded["views"]
    if torch_is_the_recipes():
        index = names().index(name)
        views = VIEWS if NIGHTLY else [VIEWS[index % len(VIEWS)]]
        expected = reference_views(picture(name), index, views)
        np.testing.assert_array_equal(made[[view - 1 for view in views]], expected)


@pytest.mark.parametrize("name", names() if NIGHTLY else names()[1::6])
def test_the_libraries_make_the_same(name: str) -> None:
    views = VIEWS.stop if NIGHTLY else 5
    np.testing.assert_array_equal(make(name, library, views), make(name, None, views))


def test_crops_that_fall_back_to_the_centre_are_among_them() -> None:
    found = [Simclr().draws(range(20), range(20), *shape) for shape in shapes()]
    always = [{drawn.box for drawn in views} for views in found]
    assert sum(len(boxes) == 1 for boxes in always) >= 8
