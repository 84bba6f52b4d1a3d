"""The parameters of views: each image view can be made again from them by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import manyviews
from featurestore.errors import ConfigError
from manyviews.operations.replay.parameters import parameters_of
from manyviews.operations.replay.replay import Replay, Settings, from_collection
from producers.recipes.images.fixed import FiveCrop, Flip
from producers.recipes.images.random_crops import Crop, Simclr
from producers.sources import pairs
from producers.sources.collection import CollectionConfig
from tests.manyviews.operations.stores import VIEWS, store_of

TRUNCATED = "0100003"


@pytest.fixture(scope="module")
def folder(demo_data: Path) -> Path:
    return demo_data / "dataset"


def replayed(folder: Path, settings: Settings, at: int = 7) -> Replay:
    stem = pairs.scan(folder).samples[at].stem
    return from_collection(CollectionConfig.mm_imdb(folder), stem, settings)


def test_crops_are_made_again_by_pillow(folder: Path) -> None:
    replay = replayed(folder, Settings(views=9, size=40, image=Crop(scale=(0.1, 0.5))))
    assert replay.poster is not None
    found = parameters_of(replay).image
    assert found is not None
    assert found.shape == (9,)
    assert {bool(row["flip"]) for row in found} == {False, True}
    for view, row in enumerate(found[1:], 1):
        left, top, width, height = map(int, row["box"])
        cut = replay.poster.crop((left, top, left + width, top + height))
        made = cut.resize((40, 40), Image.Resampling.BICUBIC)
        expected = ImageOps.mirror(made) if row["flip"] else made
        np.testing.assert_array_equal(replay.pixels(view), expected)
    assert (found["order"] == -1).all()
    assert (found["factors"] == (1, 1, 1, 0)).all()


def test_colours_are_in_the_order_of_their_application(folder: Path) -> None:
    replay = replayed(folder, Settings(views=30, image=Simclr(jitter=(0.4, 0.0, 0.4, 0.1))))
    found = parameters_of(replay).image
    assert found is not None
    assert replay.poster is not None
    assert found[0]["box"].tolist() == [0, 0, *replay.poster.size]
    for view in range(1, 30):
        drawn = replay.drawn(view)
        assert drawn is not None
        names = ("brightness", "contrast", "saturation", "hue")
        order = [names[i] for i in found[view]["order"] if i >= 0]
        assert order == [name for name, _ in drawn.jitter]
        for name, factor in drawn.jitter:
            assert found[view]["factors"][names.index(name)] == np.float32(factor)
        assert bool(found[view]["gray"]) == drawn.gray
        assert found[view]["sigma"] == np.float32(drawn.sigma or 0)
    assert (found["factors"][:, 1] == 1).all()  # a strength of 0 changes nothing
    assert {len([i for i in row if i >= 0]) for row in found["order"]} == {0, 3}


def test_hidden_words_give_the_texts(folder: Path) -> None:
    replay = replayed(folder, Settings(views=6))
    hidden = parameters_of(replay).hidden
    assert hidden is not None
    words = np.array(replay.texts[0].split(), object)
    assert hidden.shape == (6, len(words))
    for view, row in enumerate(hidden[1:], 1):
        assert " ".join(np.where(row, "[MASK]", words)) == replay.texts[view]
    assert not hidden[0].any()


def test_a_store_gives_the_parameters_by_its_own_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = Simclr(scale=(0.5, 0.9), flip=0.0, blur=1.0)
    store = store_of(tmp_path / "store", folder, **recipe.settings())  # type: ignore[arg-type]
    replay = replayed(folder, Settings(views=VIEWS, image=recipe), at=9)
    found = manyviews.view_parameters(store.path, replay.sample.stem, data_dir=folder)
    expected = parameters_of(replay)
    assert found.image is not None
    assert expected.image is not None
    np.testing.assert_array_equal(found.image, expected.image)
    assert not found.image["flip"].any()
    assert (found.image["sigma"][1:] > 0).all()


def test_a_bad_image_has_no_parameters(folder: Path, tmp_path: Path) -> None:
    del tmp_path
    replay = from_collection(CollectionConfig.mm_imdb(folder), TRUNCATED, Settings(views=4))
    assert parameters_of(replay).image is None


def test_inputs_are_needed(folder: Path, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", folder)
    with pytest.raises(ConfigError, match="inputs are missing"):
        manyviews.view_parameters(store.path, "x")


def test_recipes_without_boxes_have_no_parameters(folder: Path) -> None:
    mirrored = parameters_of(replayed(folder, Settings(views=2, image=Flip()))).image
    assert mirrored is not None
    assert mirrored["flip"].tolist() == [False, True]
    assert mirrored["box"][0].tolist() == mirrored["box"][1].tolist()
    corners = replayed(folder, Settings(views=5, image=FiveCrop()))
    with pytest.raises(ConfigError, match="'fivecrop' of images does not draw"):
        parameters_of(corners)
