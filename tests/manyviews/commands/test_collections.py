"""Commands on a collection other than MM-IMDb, and the options that name inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manyviews
from featurestore.storage.store import FeatureStore
from manyviews import main
from tests.conftest import tree_digest

Answer = tuple[int, str, str]
Call = Callable[..., Answer]
READERS = ("build", "check", "labels", "views", "verify", "report")
TEXTS = {
    "a": "a red house by the sea",
    "b c": "nothing but fog over the hills",
    "d": "three dogs in the snow at night",
    "é": "market day in the old town",
}


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three formats with texts, and one entry that is not used."""
    folder = tmp_path_factory.mktemp("photos")
    for (id_, text), suffix in zip(TEXTS.items(), ("jpg", "PNG", "webp", "jpg"), strict=True):
        photo(len(text)).save(folder / f"{id_}.{suffix}")
        (folder / f"{id_}.txt").write_text(text, "utf-8")
    (folder / "notes.doc").write_text("not used")
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> Answer:
        code = main.run_command([str(a) for a in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, str]) -> list[str]:
    typed = ["--device", "cpu", "--producers", "1"]
    for name in ("clip_image", "clip_text"):
        typed += ["--model", f"{name}={checkpoints[name]}"]
    return typed


@pytest.fixture(scope="module")
def store(photos: Path, models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    typed = ["build", "--data", str(photos), "--store", str(path), *models]
    assert main.run_command(typed) == 0
    return path


# Options ----------------------------------------------------------------------------------------


def test_every_command_that_reads_inputs_takes_the_same_options() -> None:
    for name in READERS:
        taken = {flag for option in main.cli.commands[name].params for flag in option.opts}
        assert {"--data-dir", "--data", "--config", "--follow-links"} <= taken, name


# What each command needs besides its inputs.
NEEDED: dict[str, tuple[str, ...]] = {
    "build": ("--store", "s"),
    "check": (),
    "labels": ("--out-dir", "o"),
    "views": ("--id", "a"),
    "verify": ("--store", "STORE", "--verify-inputs"),
    "report": ("--store", "STORE", "--out", "page.html"),
}


@pytest.mark.parametrize("command", READERS)
def test_two_names_of_the_inputs_are_refused(
    run: Call, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text('[collection]\nkind = "folder"\npath = "photos"\n')
    typed = [command, *(str(store) if word == "STORE" else word for word in NEEDED[command])]
    code, _, errors = run(*typed, "--data-dir", "d", "--data", "d")
    assert (code, "--data-dir and --data both name the inputs" in errors) == (2, True), errors
    if command not in ("build", "check"):  # there an option replaces what the file says
        code, _, errors = run(*typed, "--data", "d", "--config", "c.toml")
        assert (code, "--data and --config both name the inputs" in errors) == (2, True), errors
        Path("empty.toml").write_text("views = 4\n")
        code, _, errors = run(*typed, "--config", "empty.toml")
        assert (code, "empty.toml names no inputs" in errors) == (2, True), errors
    if command != "report":
        code, _, errors = run(*typed)
        assert (code, "The inputs are missing: give --data-dir DIR" in errors) == (2, True), errors
        assert len(errors.splitlines()) <= 4


def test_manyviews_toml_is_the_default_of_config(
    run: Call,
    photos: Path,
    store: Path,
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = dict(pair.split("=", 1) for pair in models[5::2])
    lines = ['store = "made"', 'device = "cpu"', "producers = 1", "[models]"]
    lines += [f"{name} = {json.dumps(place)}" for name, place in pairs.items()]
    lines += ["[collection]", 'kind = "folder"', f"path = {json.dumps(str(photos))}"]
    Path("manyviews.toml").write_text("\n".join(lines))
    assert run("build", "--resume")[0] == 0
    assert tree_digest(tmp_path / "made") == tree_digest(store)
    assert run("verify", "--store", "made", "--verify-inputs")[0] == 0
    assert run("verify", "--store", "made")[0] == 0
    code, output, _ = run("views", "--id", "b c", "--view", 1)
    assert (code, output.splitlines()[0].split(",")[0]) == (0, "'b c': sample 1")
    # An option replaces the inputs of the file, and another file replaces this one.
    code, _, errors = run("views", "--id", "b c", "--data", "nowhere")
    assert (code, "There is nothing at nowhere" in errors) == (2, True)
    Path("other.toml").write_text('data = "elsewhere"\n')
    code, _, errors = run("views", "--id", "b c", "--config", "other.toml")
    assert (code, "There is nothing at " in errors and "elsewhere" in errors) == (2, True)
    code, _, errors = run("build", "--resume", "--data", "nowhere")
    assert (code, "There is nothing at nowhere" in errors) == (2, True)


# Commands ---------------------------------------------------------------------------------------


def test_a_build_says_what_it_chose(
    run: Call, photos: Path, models: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code, output, errors = run(
        "build", "--data", photos, "--store", store, "--json", *models, "--views", 2
    )
    assert code == 0
    lines = errors.splitlines()
    assert lines[:4] == [
        "kind: folder: 4 samples with images and texts",
        "features: clip_image, clip_text",
        "views: 2 views of every sample: images by simclr, texts by drop",
        "clean text: the first text of a sample (clean_text in [collection])",
    ]
    assert any(line.startswith("the store takes ") for line in lines)
    assert "left out: 1 file with another suffix: 'notes.doc'" in errors
    assert json.loads(output)["absent"] == {}
    opened = FeatureStore(store)
    assert (opened.spec.views, opened.spec.chunk) == (2, 2240)
    assert run("build", "--data", photos, "--store", store, "--resume", *models)[2].startswith(
        "loading"
    ), "the choices are those of the store"


def test_samples_without_a_text_are_counted(run: Call, models: list[str], tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for number in range(3):
        photo(number).save(data / f"{number}.png")
    (data / "1.txt").write_text("only this one has a text")
    code, output, errors = run(
        "build", "--data", data, "--store", tmp_path / "s", "--json", *models, "--views", 2
    )
    assert (code, json.loads(output)["absent"]) == (0, {"text": 2})
    assert "2 samples without a text" in errors
    code, output, _ = run("check", "--data", data, "--no-calibration", "--json", *models)
    facts = json.loads(output)
    assert (facts["texts"]["absent"], facts["images"]["absent"]) == (2, 0)
    assert facts["texts"]["words"] == {"min": 6, "median": 6, "p95": 6, "max": 6}
    assert [sample["texts"] for sample in facts["samples"]["first"]] == [0, 1, 0]


def test_check_shows_what_it_recognized_and_the_first_samples(
    run: Call, photos: Path, models: list[str], tmp_path: Path
) -> None:
    sheet = tmp_path / "first.png"
    typed = ("check", "--data", photos, "--no-calibration", "--views", 3, *models)
    code, output, errors = run(*typed, "--sheet", sheet)
    assert code == 0, output
    assert f"written: {sheet}" in errors
    shown = " ".join(output.split())
    assert "kind folder: 4 samples with images and texts" in shown
    assert "sample 0 'a', 90 x 60 RGB JPEG, 'a red house by the sea'" in shown
    assert "sample 2 'd', 90 x 60 RGB WEBP, 'three dogs in the snow at night'" in shown
    assert "sample 3" not in shown
    assert "left out 1: 'notes.doc'" in shown
    assert "equal images none, by SHA-256" in shown
    assert "not JPEG" not in shown
    assert "poster" not in shown
    assert "synops" not in shown
    with Image.open(sheet) as drawn:
        # Three samples: a photo of 60 pixels, and a row of two views of 224 pixels.
        assert drawn.height == 3 * (8 + 18 + 2 * 8 + 18 + 60 + 18 + 224 + 8)
        pixels = np.asarray(drawn)
    with Image.open(photos / "b c.PNG") as second:
        top = drawn.height // 3 + 8 + 18 + 8 + 18
        np.testing.assert_array_equal(pixels[top : top + 60, 8 : 8 + 90], np.asarray(second))
    facts = json.loads(run(*typed, "--json")[1])
    assert facts["choices"]["features"] == ["clip_image", "clip_text"]
    assert facts["samples"]["first"][1] == {
        "id": "b c",
        "image": {"width": 90, "height": 60, "mode": "RGB", "format": "PNG"},
        "texts": 1,
        "text": TEXTS["b c"],
        "bad": [],
    }


def test_check_finds_equal_images_and_texts(
    run: Call, photos: Path, models: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for name in ("x", "y"):
        (data / f"{name}.jpg").write_bytes((photos / "a.jpg").read_bytes())
        (data / f"{name}.txt").write_text("one text", "utf-8")
    (data / "z.json").write_text('{"text": ["one text"]}')
    photo(1).save(data / "z.png")
    code, output, _ = run("check", "--data", data, "--no-calibration", "--json", *models)
    facts = json.loads(output)["data"]
    assert code == 0
    assert facts["duplicate_images"] == [["x", "y"]]
    # Files of unequal size are not read: the text of z has another file.
    assert facts["duplicate_texts"] == [["x", "y"]]


def test_views_of_any_collection_and_of_its_store(
    run: Call, photos: Path, store: Path, tmp_path: Path
) -> None:
    code, output, _ = run("views", "--data", photos, "--id", "é", "--json")
    alone = json.loads(output)
    assert (code, alone["index"], len(alone["views"])) == (0, 3, 8)
    assert alone["views"][0]["text"] == TEXTS["é"]
    code, output, _ = run("views", "--data", photos, "--stem", "é", "--store", store, "--json")
    stored = json.loads(output)
    assert (code, stored["recorded_inputs"]) == (0, ["image", "text"])
    assert stored["views"] == alone["views"]
    code, output, errors = run("views", "--data", photos, "--id", "e", "--store", store)
    assert (code, "has no sample 'e' among its 4" in errors) == (2, True)
    # A changed text is refused with its recorded hash.
    data = tmp_path / "photos"
    data.mkdir()
    for path in photos.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "d.txt").write_text("three cats", "utf-8")
    code, _, errors = run("views", "--data", data, "--id", "d", "--store", store)
    text = TEXTS["d"].encode()
    digest = hashlib.sha256(len(text).to_bytes(8, "big") + text).hexdigest()
    assert code == 2
    assert "'d.txt' is not the input that the store was built from" in errors
    assert f"recorded SHA-256: {digest}" in errors
    (data / "d.txt").unlink()
    code, _, errors = run("views", "--data", data, "--id", "d", "--store", store)
    assert (code, "none: it is absent" in errors) == (2, True)
    (data / "d.webp").unlink()
    code, _, errors = run("views", "--data", data, "--id", "d", "--store", store)
    assert (code, f"'d' is not in {data}" in errors) == (2, True)
    # A sample in front of the others does not change the number that its views are drawn with.
    photo(9).save(data / "0.jpg")
    code, output, _ = run("views", "--data", data, "--id", "é", "--store", store, "--json")
    assert (code, json.loads(output)["views"]) == (0, alone["views"])


def test_views_by_another_clean_text_are_refused(
    run: Call, photos: Path, store: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text(
        f'[collection]\nkind = "folder"\npath = {json.dumps(str(photos))}\nclean_text = "longest"\n'
    )
    code, _, errors = run("views", "--config", toml, "--id", "a", "--store", store)
    assert code == 2
    assert "another clean_text" in errors
    assert 'Set clean_text = "first" in [collection].' in errors


def test_verify_names_changed_inputs(run: Call, photos: Path, store: Path, tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for path in photos.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    typed = ("verify", "--store", store, "--verify-inputs", "--data", data)
    code, _, errors = run(*typed)
    assert code == 0
    assert f"8 inputs compared with {data}" in errors
    (data / "a.jpg").write_bytes(b"not the photo")
    (data / "b c.txt").unlink()
    code, output, errors = run(*typed, "--json")
    assert code == 1
    changed = json.loads(output)["changed_inputs"]
    assert [name for name, _ in changed] == ["a.jpg", "b c"]
    assert changed[1][1] == "there is none any more"
    assert "nothing damaged, 2 inputs changed" in errors
    found = manyviews.verify(store, data=data)
    assert found.inputs is not None
    assert [list(pair) for pair in found.inputs.changed] == changed


def test_the_report_has_the_image_of_a_bad_text(
    run: Call, models: list[str], tmp_path: Path
) -> None:
    data, page = tmp_path / "photos", tmp_path / "page.html"
    data.mkdir()
    for number in range(3):
        photo(number).save(data / f"{number}.png")
        (data / f"{number}.txt").write_bytes(b"\xff\xfe" if number == 1 else b"a text")
    store = tmp_path / "store"
    assert run("build", "--data", data, "--store", store, "--views", 2, *models)[0] == 3
    assert run("report", "--store", store, "--out", page)[0] == 0
    assert "data:image/jpeg" not in page.read_text("utf-8")
    assert run("report", "--store", store, "--out", page, "--data", data)[0] == 0
    assert page.read_text("utf-8").count("data:image/jpeg") == 1
    photo(7).save(data / "1.png")
    manyviews.report(store, page, data=data)
    assert "the image has changed since the build" in page.read_text("utf-8")
