"""Replayed views, compared with torchvision and with the output of producers."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.errors import ConfigError, InputError, StoreMismatchError
from featurestore.records import BadInput, SampleRecord, view_seed
from featurestore.storage.creation import create
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock
from featurestore.system.torchvision_ops import ensure_importable
from manyviews import main
from manyviews.operations.replay.contact_sheet import LABEL, grid, png, sheet
from manyviews.operations.replay.replay import (
    Replay,
    Settings,
    from_collection,
    from_store,
    store_size,
)
from producers.pool import ProducerPool
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
from producers.sources import pairs
from producers.sources.collection import CollectionConfig
from producers.sources.readers import pair_source
from producers.worker import Job
from tests.featurestore.stores import make_fingerprint, make_rows
from tests.manyviews.operations.stores import CHUNK, DIMS, VIEWS, store_of
from tests.producers.reference import reference_views, require_torchvisions

mm_imdb = CollectionConfig.mm_imdb

SETTINGS = Settings(views=VIEWS)
TRUNCATED = "0100003"  # the only unusable poster of the demo data


def stems(folder: Path) -> list[str]:
    return [s.stem for s in pairs.scan(folder).samples]


def read_poster(folder: Path, stem: str) -> Image.Image:
    [path] = [p for p in folder.glob(f"{stem}.*") if p.suffix != ".json"]
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def folder(demo_data: Path) -> Path:
    return demo_data / "dataset"


# Pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 20, 47])
def test_pixels_equal_torchvision(folder: Path, at: int) -> None:
    stem = stems(folder)[at]
    replay = from_collection(mm_imdb(folder), stem, SETTINGS)
    assert replay.sample.index == at
    made = np.stack([replay.pixels(view) for view in range(1, VIEWS)])
    poster = read_poster(folder, stem)
    require_torchvisions(
        f"replayed {at}", made, [poster], lambda: reference_views(poster, at, range(1, VIEWS))
    )
    np.testing.assert_array_equal(replay.pixels(0), np.asarray(read_poster(folder, stem)))


@pytest.mark.parametrize(("seed", "size"), [(123, 224), (9, 64)])
def test_pixels_and_texts_equal_those_of_producers(folder: Path, seed: int, size: int) -> None:
    clip, blip2 = ImageSpec(size, size), ImageSpec(size, None)
    job = Job(pair_source(folder), VIEWS, seed, (clip, blip2), (), slots=4)
    samples = pairs.scan(folder).samples[:5]  # the first is the truncated one
    with ProducerPool(job, samples, producers=1, timeout_s=60.0) as pool:
        for sample in samples:
            made = pool.take()
            replay = from_collection(mm_imdb(folder), sample.stem, Settings(seed, VIEWS, size))
            for view in range(1, VIEWS):
                expected = made.arrays.augmented[clip][view - 1]
                np.testing.assert_array_equal(replay.pixels(view), expected)
            for name, spec in (("clip", clip), ("blip2", blip2)):
                np.testing.assert_array_equal(replay.pixels(0, name), made.arrays.clean[spec])
            assert replay.bad == made.record.bad
            pool.release(made)
    assert samples[0].stem == TRUNCATED


# Parameters -------------------------------------------------------------------------------------


def with_torchvision(replay: Replay, poster: Image.Image, view: int) -> np.ndarray:
    """The view that torchvision's functional operations compute from the replayed parameters."""
    ensure_importable()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    drawn = replay.drawn(view)
    assert drawn is not None
    left, top, width, height = drawn.box
    image = F.resized_crop(
        poster, top, left, height, width, [224, 224], InterpolationMode.BICUBIC, antialias=True
    )
    if drawn.flip:
        image = F.hflip(image)
    for name, factor in drawn.jitter:
        image = getattr(F, f"adjust_{name}")(image, factor)
    if drawn.gray:
        image = F.rgb_to_grayscale(image, 3)
    if drawn.sigma is not None:
        image = F.gaussian_blur(image, [23, 23], [drawn.sigma, drawn.sigma])
    return np.asarray(image)


def _all_with_torchvision(replay: Replay, poster: Image.Image, views: range) -> np.ndarray:
    return np.stack([with_torchvision(replay, poster, view) for view in views])


def test_the_parameters_reproduce_the_pixels(folder: Path) -> None:
    seen: set[str] = set()
    for stem in stems(folder)[1:4]:
        replay = from_collection(mm_imdb(folder), stem, Settings(views=16))
        poster, made = read_poster(folder, stem), []
        for view in range(1, 16):
            drawn = replay.drawn(view)
            assert drawn is not None
            made.append(replay.pixels(view))
            seen |= {name for name, _ in drawn.jitter}
            seen |= {"flip"} if drawn.flip else {"straight"}
            seen |= {"gray"} if drawn.gray else {"coloured"}
            seen |= {"plain"} if not drawn.jitter and not drawn.gray and not drawn.sigma else set()
            seen |= {"sharp"} if drawn.sigma is None else {"blurred"}
        require_torchvisions(
            f"parameters {stem}",
            np.stack(made),
            [poster],
            partial(_all_with_torchvision, replay, poster, range(1, 16)),
        )
    assert len(seen) == 11, (
        seen
    )  # every step of the recipe was applied in some views, and skipped in others


def test_the_crop_equals_torchvision(folder: Path) -> None:
    ensure_importable()
    from torchvision.transforms import RandomResizedCrop

    stem = stems(folder)[3]
    replay = from_collection(mm_imdb(folder), stem, SETTINGS)
    for view in range(1, VIEWS):
        torch.manual_seed(view_seed(123, 3, view, "image"))
        crop = RandomResizedCrop.get_params(read_poster(folder, stem), [0.08, 1.0], [3 / 4, 4 / 3])
        drawn = replay.drawn(view)
        assert drawn is not None
        left, top, width, height = drawn.box
        assert (top, left, height, width) == crop


# Text -------------------------------------------------------------------------------------------


def test_masked_words_are_the_published_ones(folder: Path) -> None:
    for at in (1, 5, 30):
        stem = stems(folder)[at]
        text = " ".join(json.loads((folder / f"{stem}.json").read_bytes())["plot"])
        replay = from_collection(mm_imdb(folder), stem, SETTINGS)
        assert replay.texts[0] == text
        assert replay.hidden(0) == []
        for view in range(1, VIEWS):
            words = text.split()
            order = list(range(len(words)))
            seed = hashlib.sha256(f"123:{at}:{view}:text".encode()).hexdigest()[:8]
            random.Random(int(seed, 16)).shuffle(order)
            hidden = sorted(order[: max(1, round(0.15 * len(words)))] if words else [])
            assert replay.hidden(view) == hidden
            for position in hidden:
                words[position] = "[MASK]"
            assert replay.texts[view] == " ".join(words)


# From a store -----------------------------------------------------------------------------------


def test_seed_views_and_index_come_from_the_store(folder: Path, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", folder, seed=77)
    replay = from_store(store, mm_imdb(folder), stems(folder)[9])
    assert (replay.settings, replay.recorded) == (
        Settings(77, VIEWS, 224),
        ("image", "text"),
    )
    alone = from_collection(mm_imdb(folder), stems(folder)[9], Settings(77, VIEWS))
    np.testing.assert_array_equal(replay.pixels(5), alone.pixels(5))


def test_files_that_differ_from_the_recorded_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    store = store_of(tmp_path / "store", folder)
    one, other = stems(folder)[2:4]
    assert from_store(store, mm_imdb(copy), one).recorded == ("image", "text")
    shutil.copy(copy / f"{other}.jpg", copy / f"{one}.jpg")
    with pytest.raises(InputError, match=f"{one}.jpg.*is not the file") as caught:
        from_store(store, mm_imdb(copy), one)
    assert len(str(caught.value).splitlines()) <= 4
    (copy / f"{other}.json").write_text('{"plot": "another"}')
    with pytest.raises(InputError, match=f"{other}.json.*is not the file"):
        from_store(store, mm_imdb(copy), other)
    (copy / f"{other}.json").unlink()
    with pytest.raises(InputError, match="Give --data-dir the folder"):
        from_store(store, mm_imdb(copy), other)


def test_an_uncommitted_sample_is_not_compared(folder: Path, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", folder, chunks=[0])
    names = stems(folder)
    assert from_store(store, mm_imdb(folder), names[CHUNK - 1]).recorded == (
        "image",
        "text",
    )
    replay = from_store(store, mm_imdb(folder), names[CHUNK])
    assert replay.recorded == ()
    assert replay.sample.index == CHUNK


@pytest.mark.parametrize(
    ("read", "other", "said"),
    [
        ("text", "jpg", "the synopsis is the one that the store was built from"),
        ("image", "json", "the poster is the one that the store was built from"),
    ],
)
def test_inputs_without_a_recorded_hash_are_not_compared(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    read: str,
    other: str,
    said: str,
) -> None:
    """A store without image features has no hashes of posters, and vice versa."""
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    store = store_of(tmp_path / "store", copy, read=[read])
    one, another = stems(copy)[2:4]
    shutil.copy(copy / f"{another}.{other}", copy / f"{one}.{other}")
    replay = from_store(store, mm_imdb(copy), one)
    assert (replay.recorded, replay.bad) == ((read,), ())
    assert (
        main.run_command(
            [
                "views",
                "--store",
                str(store.path),
                "--data-dir",
                str(copy),
                "--stem",
                one,
                "--view",
                "1",
            ]
        )
        == 0
    )
    assert said in capsys.readouterr().out.splitlines()[1]
    other_read = {"jpg": "json", "json": "jpg"}[other]
    shutil.copy(copy / f"{another}.{other_read}", copy / f"{one}.{other_read}")
    with pytest.raises(InputError, match="is not the file"):
        from_store(store, mm_imdb(copy), one)


def test_a_recorded_placeholder_is_replayed(folder: Path, tmp_path: Path) -> None:
    bad = {
        5: (BadInput(5, "image", "producer-died", "twice"), BadInput(5, "text", "unreadable", "")),
    }
    store = store_of(tmp_path / "store", folder, bad=bad)
    replay = from_store(store, mm_imdb(folder), stems(folder)[5])
    assert not replay.pixels(0).any()
    assert not replay.pixels(3).any()
    assert replay.drawn(3) is None
    assert replay.bad[0] == bad[5][0]


def test_a_recorded_unreadable_file_is_not_read(folder: Path, tmp_path: Path) -> None:
    samples = pairs.scan(folder).samples
    spec = StoreSpec(len(samples), VIEWS, 48, DIMS)
    known = make_fingerprint(spec, [s.stem for s in samples])
    known |= Simclr().settings() | Mask().settings()
    bad = (BadInput(1, "image", "missing", ""), BadInput(1, "text", "missing", ""))
    records = [SampleRecord(i, "", "", 0, bad if i == 1 else ()) for i in range(48)]
    with create(tmp_path / "s", spec, known, samples, take_lock(tmp_path / "s")) as writer:
        writer.commit_chunk(0, make_rows(spec), records, {})
    replay = from_store(FeatureStore(tmp_path / "s"), mm_imdb(folder), samples[1].stem)
    assert replay.bad == bad
    assert replay.texts == [""] * VIEWS
    assert not replay.pixels(1).any()


def test_another_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", folder, text_recipe="mask-30-9")
    with pytest.raises(StoreMismatchError, match="text_recipe"):
        from_store(store, mm_imdb(folder), stems(folder)[2])


def test_the_size_comes_from_declared_backbones_or_the_paper() -> None:
    paper = ("clip_image", "clip_text")
    assert store_size({}, paper, None) == 224
    assert (
        store_size({}, paper, 64) == 64
    )  # checkpoints of another size, which the store does not record
    assert store_size({"dino.size": 384}, ("dino",), None) == 384
    assert store_size({"dino.size": 224}, ("dino", "clip_image"), None) == 224
    assert store_size({"bert.max_length": 9}, ("bert",), None) == 224
    with pytest.raises(ConfigError, match="several sizes: dino 384, clip_image 224"):
        store_size({"dino.size": 384}, ("dino", "clip_image"), None)
    assert store_size({"dino.size": 384}, ("dino", "clip_image"), 384) == 384
    with pytest.raises(ConfigError, match="found --size 224"):
        store_size({"dino.size": 384}, ("dino",), 224)


# Invalid arguments ------------------------------------------------------------------------------


def test_an_unknown_stem_lists_similar_ones(folder: Path) -> None:
    stem = stems(folder)[4]
    with pytest.raises(InputError, match=f"has no sample '{stem}.jpg'.*\nSimilar: '{stem}'"):
        from_collection(mm_imdb(folder), f"{stem}.jpg", SETTINGS)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("views", 0), ("size", 0)])
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{name} must be at least"):
        replace(Settings(), **{name: value})  # type: ignore[arg-type]


# The sheet --------------------------------------------------------------------------------------


def test_the_sheet_holds_every_view_with_its_number(folder: Path) -> None:
    replay = from_collection(mm_imdb(folder), stems(folder)[6], Settings(views=14, size=64))
    page = Image.open(io.BytesIO(png(sheet(replay))))
    pixels, cells = np.asarray(page), grid(replay)
    assert pixels.shape == (cells.height, max(cells.width, replay.pixels(0).shape[1] + 16), 3)
    labels = set()
    for view in range(1, 14):
        left, top = cells.cell(view)
        np.testing.assert_array_equal(pixels[top : top + 64, left : left + 64], replay.pixels(view))
        labels.add(pixels[top - LABEL : top, left : left + 20].tobytes())
    assert len(labels) == 13  # each number looks different


@pytest.mark.parametrize("settings", [Settings(views=1), Settings(views=2, size=500)])
def test_a_sheet_of_few_views(folder: Path, settings: Settings) -> None:
    for stem in (TRUNCATED, stems(folder)[6]):
        page = sheet(from_collection(mm_imdb(folder), stem, settings))
        assert min(page.size) > 100


def test_a_png_is_lossless_and_deterministic(folder: Path) -> None:
    pixels = from_collection(mm_imdb(folder), stems(folder)[6], SETTINGS).pixels(2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)
    assert png(pixels) == png(pixels.copy())
