"""Views pixel for pixel: against torchvision's own recipe, and transformers' own processors."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.errors import BadSampleError
from featurestore.system.torchvision_ops import ensure_importable
from producers.kernels.draws import blur_taps
from producers.recipes.images.geometry import ImageSpec, clean_view
from tests.producers.pictures import PHOTOS, photo
from tests.producers.reference import reference_views, require_torchvisions
from tests.producers.views import augmented_views

CLIP = ImageSpec(size=224, shortest_edge=224)
BLIP = ImageSpec(size=224, shortest_edge=None)
Processed = Callable[[Image.Image, ImageSpec], np.ndarray]


def make(poster: Image.Image, index: int, views: int, size: int = 224) -> np.ndarray:
    out = np.full((views - 1, size, size, 3), 7, np.uint8)
    augmented_views(poster, size=size, base_seed=123, index=index, views=views, out=out)
    return out


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (223, 225), (5000, 3)])
def test_views_of_extreme_shapes_equal_the_papers(size: tuple[int, int]) -> None:
    poster = photo("china", size)
    require_torchvisions(
        f"shape {size[0]}x{size[1]}",
        make(poster, 25958, 6),
        [poster],
        lambda: reference_views(poster, 25958, range(1, 6)),
    )


@pytest.mark.parametrize(("size", "kernel"), [(16, 1), (32, 3), (64, 7), (96, 9), (336, 33)])
def test_other_sizes_keep_the_share_of_the_kernel(size: int, kernel: int) -> None:
    poster = photo("flower", (200, 300))
    assert blur_taps(size) == kernel
    require_torchvisions(
        f"size {size}",
        make(poster, 2, 8, size),
        [poster],
        lambda: reference_views(poster, 2, range(1, 8), size, kernel),
    )


def test_views_do_not_depend_on_each_other_or_on_the_callers_generator() -> None:
    poster = photo("chelsea", (120, 90))
    torch.manual_seed(5)
    long = make(poster, 3, 9)
    short = make(poster, 3, 4)
    assert np.array_equal(long[:3], short)
    assert not np.array_equal(long[0], long[1])
    assert not np.array_equal(long, make(poster, 4, 9))


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before, key = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    make(photo("chelsea", (60, 40)), 0, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], key)


def test_the_poster_is_not_changed_and_rows_can_be_strided() -> None:
    poster = photo("china", (80, 100))
    pixels = np.array(poster)
    slots = np.zeros((2, 3, 32, 32, 3), np.uint8)
    augmented_views(poster, size=32, base_seed=123, index=1, views=4, out=slots[1])
    assert np.array_equal(slots[1], make(poster, 1, 4, 32))
    assert not slots[0].any()
    assert np.array_equal(np.array(poster), pixels)


def test_a_build_of_clean_views_only_draws_nothing() -> None:
    assert make(photo("china", (80, 100)), 0, 1).shape == (0, 224, 224, 3)


def test_wrong_arguments_are_refused() -> None:
    poster = photo("china", (80, 100))
    wrong: tuple[np.ndarray, ...] = (
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((3, 8, 8, 3), np.int16),
        np.zeros((3, 9, 8, 3), np.uint8),
    )
    for out in wrong:
        with pytest.raises(ValueError, match=r"out must be uint8 \(3, 8, 8, 3\)"):
            augmented_views(poster, size=8, base_seed=123, index=0, views=4, out=out)
    with pytest.raises(ValueError, match="must be RGB, got mode L"):
        make(poster.convert("L"), 0, 2)
    with pytest.raises(ValueError, match="must be RGB, got mode L"):
        clean_view(poster.convert("L"), CLIP)


@pytest.fixture(scope="module")
def processors() -> Processed:
    ensure_importable()
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    def clip(spec: ImageSpec) -> Any:
        crop = {"height": spec.size, "width": spec.size}
        size = {"shortest_edge": spec.shortest_edge}
        return CLIPImageProcessorPil(size=size, crop_size=crop, resample=spec.resample)

    def blip(spec: ImageSpec) -> Any:
        size = {"height": spec.size, "width": spec.size}
        return BlipImageProcessorPil(size=size, resample=spec.resample)

    def pixels(poster: Image.Image, spec: ImageSpec) -> np.ndarray:
        processor = blip(spec) if spec.shortest_edge is None else clip(spec)
        [made] = processor(poster, do_rescale=False, do_normalize=False)["pixel_values"]
        return np.moveaxis(np.asarray(made), 0, -1)

    return pixels


SPECS = [
    CLIP,
    BLIP,
    ImageSpec(336, 336),
    ImageSpec(32, None),
    ImageSpec(224, 256, 2),
    ImageSpec(225, 224),
    ImageSpec(64, 33),
    ImageSpec(50, 21, 0),
]
SHAPES = [
    (300, 450),
    (450, 301),
    (224, 224),
    (223, 400),
    (1, 1),
    (3, 700),
    (701, 3),
    (1000, 1500),
    (97, 61),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_clean_view_equals_transformers(spec: ImageSpec, processors: Processed) -> None:
    for number, shape in enumerate(SHAPES):
        poster = photo(["china", "coffee", "astronaut"][number % 3], shape)
        view = clean_view(poster, spec)
        assert (view.shape, view.dtype) == ((spec.size, spec.size, 3), np.dtype(np.uint8))
        assert np.array_equal(view, processors(poster, spec)), shape


@pytest.mark.parametrize("name", PHOTOS)
def test_clean_view_of_whole_photos_equals_transformers(name: str, processors: Processed) -> None:
    poster = photo(name)
    assert np.array_equal(clean_view(poster, CLIP), processors(poster, CLIP))
    assert np.array_equal(clean_view(poster, BLIP), processors(poster, BLIP))


def test_augmented_views_pass_both_processors_unchanged(processors: Processed) -> None:
    [view] = make(photo("china"), 0, 2)
    for spec in (CLIP, BLIP):
        assert np.array_equal(clean_view(Image.fromarray(view), spec), view)
        assert np.array_equal(processors(Image.fromarray(view), spec), view)


def test_a_strip_too_thin_to_resize_is_refused_before_it_is_allocated() -> None:
    for shape in ((1, 20_000), (20_000, 1)):
        with pytest.raises(BadSampleError, match=r"too-large: .* would be resized to") as caught:
            clean_view(Image.new("RGB", shape), CLIP)
        assert caught.value.reason == "too-large"
        assert clean_view(Image.new("RGB", shape, "red"), BLIP).any()


def test_placeholder_is_black_in_every_view() -> None:
    black = Image.new("RGB", (224, 224))
    assert (black.mode, black.size) == ("RGB", (224, 224))
    assert not clean_view(black, CLIP).any()
    assert not make(black, 0, 12).any()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_spec_round_trips_through_json_and_is_hashable(spec: ImageSpec) -> None:
    again = ImageSpec(**json.loads(json.dumps(dataclasses.asdict(spec))))
    assert again == spec
    assert len({again, spec}) == 1


def test_importing_the_producers_stays_light() -> None:
    code = (
        "import sys, producers.sources.readers, producers.decode, producers.worker\n"
        "import producers.recipes.texts.tokens\n"
        "import featurestore.system.torchvision_ops\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'zarr', 'consumers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'PIL.EpsImagePlugin' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parents[3]
    )


@pytest.mark.nightly
def test_torchvision_and_transformers_import_in_a_fresh_process() -> None:
    code = (
        "from featurestore.system.torchvision_ops import ensure_importable\n"
        "ensure_importable(); ensure_importable()\n"
        "import torchvision, gc; gc.collect()\n"
        "import torch; assert hasattr(torch.ops.torchvision, 'nms')\n"
        "ensure_importable()\n"
        "from torchvision.transforms import GaussianBlur\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parents[3]
    )
