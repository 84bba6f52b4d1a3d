"""The ``views`` command: its output, its files, and its refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manyviews import main
from manyviews.operations.replay.replay import Settings, from_collection
from producers.recipes.images.random_crops import Crop
from producers.recipes.texts.hiding import Drop
from producers.sources import pairs
from producers.sources.collection import CollectionConfig

mm_imdb = CollectionConfig.mm_imdb

STEM = "0107922"


@pytest.fixture
def views(demo_data: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs ``views`` on the demo's data; returns exit code, output, messages."""

    def call(*arguments: object, stem: str = STEM) -> tuple[int, str, str]:
        folder = str(demo_data / "dataset")
        with pytest.raises(SystemExit) as ended:
            main.main(["views", "--data-dir", folder, "--stem", stem, *map(str, arguments)])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def folder(demo_data: Path) -> Path:
    return demo_data / "dataset"


def test_parameters_and_marked_text_are_printed(views: Any, folder: Path) -> None:
    code, output, errors = views("--views", 4)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"'{STEM}': sample 1, 258 x 327 poster, 59 words; seed 123, 4 views")
    replay = from_collection(mm_imdb(folder), STEM, Settings(views=4))
    for view in range(1, 4):
        drawn, text = lines[1 + 2 * view], lines[2 + 2 * view]
        seen = replay.drawn(view)
        assert seen is not None
        left, top, width, height = seen.box
        expected = f"view {view}: crop top={top} left={left} height={height} width={width}"
        assert drawn.startswith(expected)
        assert ("flip" in drawn, "gray" in drawn) == (seen.flip, seen.gray)
        assert [s.split()[0] for s in drawn.split(", ") if s[-1].isdigit()][1:] == [
            *(name for name, _ in seen.jitter),
            *(["blur"] if seen.sigma is not None else []),
        ]
        assert text.count("[MASK:") == len(replay.hidden(view)) == 9
        assert " ".join(text.replace("[MASK:", "").replace("]", "").split()) == replay.texts[0]


def test_json_has_everything_exactly(views: Any, folder: Path) -> None:
    code, output, _ = views("--views", 4, "--seed", 5, "--size", 64, "--json")
    assert code == 0
    facts = json.loads(output)
    replay = from_collection(mm_imdb(folder), STEM, Settings(5, 4, 64))
    assert [v["text"] for v in facts["views"]] == replay.texts
    for view in facts["views"][1:]:
        drawn = replay.drawn(view["view"])
        assert drawn is not None
        crop = view["crop"]
        assert (crop["left"], crop["top"], crop["width"], crop["height"]) == drawn.box
        assert tuple(map(tuple, view["jitter"])) == drawn.jitter
        assert (view["flip"], view["gray"], view["blur_sigma"]) == (
            drawn.flip,
            drawn.gray,
            drawn.sigma,
        )
        words = replay.texts[0].split()
        assert view["hidden"] == [[at, words[at]] for at in replay.hidden(view["view"])]
        pixels = replay.pixels(view["view"])
        assert view["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("option", ["--sheet", "--out"])
def test_one_view_is_written_losslessly(
    views: Any, folder: Path, tmp_path: Path, option: str
) -> None:
    code, output, errors = views("--view", 3, option, tmp_path / "v.png")
    assert (code, output.count("view ")) == (0, 1)
    assert errors == f"written: {tmp_path / 'v.png'}\n"
    expected = from_collection(mm_imdb(folder), STEM, Settings()).pixels(3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "v.png")), expected)


def test_the_clean_view_of_a_processor(views: Any, folder: Path, tmp_path: Path) -> None:
    replay = from_collection(mm_imdb(folder), STEM, Settings())
    for processor in ("clip", "blip2"):
        path = tmp_path / f"{processor}.png"
        assert views("--view", 0, "--processor", processor, "--out", path)[0] == 0
        pixels = np.asarray(Image.open(path))
        np.testing.assert_array_equal(pixels, replay.pixels(0, processor))
    assert views("--view", 0, "--out", tmp_path / "poster.png")[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "poster.png")), replay.pixels(0))


def test_contradictory_options_are_refused(views: Any, tmp_path: Path) -> None:
    for arguments, message in (
        (("--view", 70), "--view must be 0 to 69, found 70"),
        (("--view", 2, "--processor", "clip"), "give --view 0"),
        (("--store", tmp_path / "none"), "no feature store"),
        (("--store", tmp_path, "--seed", 3), "--seed comes from the store"),
        (("--store", tmp_path, "--views", 3), "--views comes from the store"),
    ):
        code, output, errors = views(*arguments)
        assert (code, output) == (2, "")
        assert message in errors


def test_control_characters_are_escaped(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [sample] = [s for s in pairs.scan(folder).samples if s.stem == STEM]
    (tmp_path / "a.jpg").write_bytes((folder / str(sample.image_name)).read_bytes())
    plot = "\x1b[2Jred \u202eword\n"
    (tmp_path / "a.json").write_text(json.dumps({"plot": plot}))
    with pytest.raises(SystemExit):
        main.main(["views", "--data-dir", str(tmp_path), "--stem", "a", "--views", "2"])
    output = capfd.readouterr().out
    assert "\\x1b[2Jred \\u202eword\\n" in output
    assert "\x1b" not in output
    with pytest.raises(SystemExit):
        main.main(["views", "--data-dir", str(tmp_path), "--stem", "a", "--views", "2", "--json"])
    assert json.loads(capfd.readouterr().out)["views"][0]["text"] == plot


def test_the_recipes_of_the_file_are_replayed(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "build.toml"
    file = f'data_dir = "{folder}"\nviews = 5\nseed = 8\n[recipe.image]\n'

    def run(recipe: str) -> tuple[object, str, str]:
        path.write_text(f'{file}{recipe}\n[recipe.text]\nname = "drop"\n')
        with pytest.raises(SystemExit) as ended:
            main.main(["views", "--id", STEM, "--json", "--config", str(path)])
        return ended.value.code, *capfd.readouterr()

    code, output, _ = run('name = "crop"\nflip = 0.0')
    found = json.loads(output)["views"]
    assert (code, len(found)) == (0, 5)
    settings = Settings(8, 5, image=Crop(flip=0.0), text=Drop())
    expected = from_collection(mm_imdb(folder), STEM, settings)
    for view in found[1:]:
        pixels = expected.pixels(view["view"])
        assert view["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert view["text"] == expected.texts[view["view"]]
    code, _, message = run('name = "flip"')
    assert code == 2
    assert "--views is 2 with the recipe 'flip'" in message
