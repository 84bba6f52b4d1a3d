"""The documentation compared with the code: all options are listed, all examples run."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers.config import BuildConfig
from consumers.config_file import read_toml
from featurestore.storage.store import FeatureStore
from manyviews import main
from tests.conftest import ROOT
from tests.manyviews.operations.stores import store_of
from tools import pipeline_picture
from tools.command_reference import page

BLOCK = re.compile(r"^( *)```(bash|python|toml)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Pages without examples whose links are checked as well.
LINKED = [*PAGES, *sorted(ROOT.glob("[CS]*.md")), *sorted((ROOT / "docs").glob("*/*.md"))]
# CI itself runs these lines on a new machine.
SET_UP = ("make demo", "pip install")
SAMPLES = 4
MADE = 16  # samples of the collections on the page about your own data
PACKAGES = "(?:featurestore|producers|consumers|manyviews|tests|tools|benchmarks)"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, without their indentation."""
    return [
        "\n".join(line.removeprefix(indent) for line in code.splitlines())
        for indent, found, code in BLOCK.findall(page.read_text("utf-8"))
        if found == language
    ]


def test_every_command_and_option_is_in_the_reference() -> None:
    expected = (ROOT / "docs/command-line.md").read_text("utf-8")
    assert page() == expected, "python tools/command_reference.py > docs/command-line.md"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor and found.suffix == ".md":
            heads = re.findall(r"^#+ +(.*)$", found.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
            explicit = set(re.findall(r'<a (?:id|name)="([^"]+)"', found.read_text("utf-8")))
            assert anchor[1:] in slugs | explicit, f"{page.name} links to {target}{anchor}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_sources_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(rf"`({PACKAGES}/[\w./-]+)`", text)
    named += [
        f"{m.replace('.', '/')}.py" for m in re.findall(rf"python -m ({PACKAGES}[\w.]+)", text)
    ]
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []


def test_the_picture_is_what_the_program_draws() -> None:
    picture = (ROOT / "docs/pipeline.svg").read_text("utf-8")
    assert picture == pipeline_picture.picture(), pipeline_picture.__doc__


def test_decisions_are_numbered_and_listed() -> None:
    index = (ROOT / "docs/design.md").read_text("utf-8")
    entry = re.compile(r"^(\d+)\. \[(.+)\]\((design/\w+\.md)#\S+\)$", re.MULTILINE)
    listed = [(int(number), title, file) for number, title, file in entry.findall(index)]
    assert [number for number, _, _ in listed] == list(range(1, len(listed) + 1))
    record = re.compile(
        r"^### (\d+)\. (.+)\n\n\*\*Problem\.\*\* (?s:.+?)\*\*Decision\.\*\* ", re.MULTILINE
    )
    written = [
        (int(number), title, f"design/{file.name}")
        for file in (ROOT / "docs/design").glob("*.md")
        for number, title in record.findall(file.read_text("utf-8"))
    ]
    assert sorted(written) == listed
    headings = [
        heading
        for file in (ROOT / "docs/design").glob("*.md")
        for heading in re.findall(r"^### .*$", file.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(headings) == len(listed)


def test_every_page_is_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^ *- (\S+\.md)$", nav, re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(["index.md", *pages])


def test_the_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for found in PAGES[1:]:
        if found.name != "README.md":
            assert f"docs/{found.name}" in readme, found.name


@pytest.fixture
def workplace(
    tmp_path: Path, demo_data: Path, checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The files of the examples: imdb/dataset, imdb/split.json, and the paper's models by name."""
    data = tmp_path / "imdb/dataset"
    data.mkdir(parents=True)
    # The first poster of the demo is truncated, which would change the exit code.
    stems = sorted(p.stem for p in (demo_data / "dataset").glob("*.json"))[1 : SAMPLES + 1]
    for stem in stems:
        for file in (demo_data / "dataset").glob(f"{stem}.*"):
            shutil.copy(file, data)
    split = {"train": stems[:2], "dev": stems[2:3], "test": stems[3:]}
    (tmp_path / "imdb/split.json").write_text(json.dumps(split))
    variables = {
        "CLIP_MODEL_ID_IMG": "clip_image",
        "CLIP_MODEL_ID_TXT": "clip_text",
        "BLIP2_MODEL_ID": "blip2_image",
    }
    for name, feature in variables.items():
        monkeypatch.setenv(name, checkpoints[feature])
    return tmp_path


def test_what_the_readme_and_the_page_on_mm_imdb_say_to_type_works(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    readme, published = ROOT / "README.md", ROOT / "docs/mm-imdb.md"
    make_photos(workplace, workplace)
    monkeypatch.chdir(workplace)
    # The page's commands find the store built, so that `build --resume` has nothing to do.
    type_here("\n".join([*commands_of(readme), *commands_of(published)]), capfd)
    assert (workplace / "embeddings/mm_imdb1_globals_aug70_manifest.json").exists()
    assert (workplace / "embeddings/mm_imdb1_globals_aug70_labels.npy").exists()
    for code in blocks(readme, "python") + blocks(published, "python"):
        exec(compile(code, "a page", "exec"), {})  # the page's own code


def photo(number: int) -> Image.Image:
    """A photo of noise, reddish or bluish by the number."""
    noise = np.random.default_rng(number).integers(0, 100, (48, 64, 3), np.uint8)
    noise[:, :, 2 * (number % 2)] += 150
    return Image.fromarray(noise)


def encoded(number: int) -> bytes:
    out = io.BytesIO()
    photo(number).save(out, "JPEG")
    return out.getvalue()


WORDS = ("calm quiet gentle slow soft", "loud fast wild sharp bright")


def text_of(number: int) -> str:
    words = random.Random(number).choices(WORDS[number % 2].split(), k=6)
    return " ".join(words)


def make_photos(place: Path, _: Path) -> None:
    for number in range(MADE):
        folder = place / "photos" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / f"{number}.png")


def make_birds(place: Path, _: Path) -> None:
    (place / "birds").mkdir()
    for number in range(MADE):
        stem = "heron" if number == 0 else f"bird-{number}"
        photo(number).save(place / "birds" / f"{stem}.jpg")
        found = {"text": text_of(number), "habitat": ("water", "wood")[number % 2]}
        (place / "birds" / f"{stem}.json").write_text(json.dumps(found))


def make_reviews(place: Path, _: Path) -> None:
    with (place / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "label"])
        for number in range(MADE):
            rows.writerow([f"r{number}", f'{text_of(number)}, "quoted"', ("+", "-")[number % 2]])


def make_posters(place: Path, _: Path) -> None:
    parts = ("train", "train", "train", "train", "val", "val", "test", "test")
    columns = {
        "film": [f"tt{number:04}" for number in range(MADE)],
        "poster": [encoded(number) for number in range(MADE)],
        "captions": [[text_of(number), text_of(number + 2)] for number in range(MADE)],
        "genres": [["Drama"] if number % 2 else ["Comedy", "War"] for number in range(MADE)],
        "part": [parts[number % len(parts)] for number in range(MADE)],
        "year": [1990 + number for number in range(MADE)],
    }
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pytest.importorskip("pyarrow").table(columns), place / "posters.parquet")


def make_shards(place: Path, _: Path) -> None:
    (place / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(place / "shards" / f"{shard:03}.tar", "w") as tar:
            for number in range(shard * MADE // 2, (shard + 1) * MADE // 2):
                members = {"jpg": encoded(number), "txt": text_of(number).encode()}
                members["cls"] = str(number % 2).encode()
                for kind, data in members.items():
                    member = tarfile.TarInfo(f"{number:06}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_saved(place: Path, _: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [photo(number) for number in range(MADE)],
        "caption": [text_of(number) for number in range(MADE)],
        "label": [number % 2 for number in range(MADE)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(place / "saved")


def make_archive(place: Path, workplace: Path) -> None:
    with tarfile.open(place / "mmimdb.tar.gz", "w:gz") as tar:
        tar.add(workplace / "imdb", "mmimdb")


# By the heading of the section: what writes the files that its example reads.
MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "Photos in class folders": make_photos,
    "A folder of images and texts": make_birds,
    "A CSV file of texts": make_reviews,
    "A Parquet file with captions and splits": make_posters,
    "Tar files of WebDataset": make_shards,
    "A data set of Hugging Face": make_saved,
    "MM-IMDb": make_archive,
}


def test_every_section_of_the_page_on_your_data_is_run() -> None:
    text = (ROOT / "docs/your-data.md").read_text("utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(MAKERS)


@pytest.mark.parametrize("title", MAKERS)
def test_each_example_of_the_page_on_your_data_ends_in_a_trained_probe(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    title: str,
) -> None:
    place = workplace / "here"
    place.mkdir()
    MAKERS[title](place, workplace)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    text = (ROOT / "docs/your-data.md").read_text("utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if language == "toml":
            Path("manyviews.toml").write_text(code)
            continue
        lines = code.splitlines()
        for line in lines:
            if line.startswith("tar "):
                subprocess.run(shlex.split(line), check=True)
            else:
                *_, printed = type_here(line, capfd)
    assert lines[-1].startswith("python cli.py probe")
    assert "clip_" in printed
    store = FeatureStore(Path("features"))
    assert store.complete
    assert not (title != "MM-IMDb" and store.bad_inputs)


def test_the_options_in_a_file_are_accepted(tmp_path: Path) -> None:
    (options,) = blocks(ROOT / "docs/mm-imdb.md", "toml")
    (tmp_path / "build.toml").write_text(options)
    config = BuildConfig(**read_toml(tmp_path / "build.toml"))
    assert config.sample_timeout_s == 120
    assert config.batch_sizes == {"blip2_text": 32}


def commands_of(page: Path) -> list[str]:
    """The commands of a page, without those that install."""
    found = [b for b in blocks(page, "bash") if not any(words in b for words in SET_UP)]
    assert found
    return found


@pytest.fixture
def three(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Enters a workplace with three samples; returns their stems."""
    data = workplace / "imdb/dataset"
    stems = sorted(path.stem for path in data.glob("*.json"))
    for stem in stems[3:]:
        for file in data.glob(f"{stem}.*"):
            file.unlink()
    split = {"train": stems[:1], "dev": stems[1:2], "test": stems[2:3]}
    (workplace / "imdb/split.json").write_text(json.dumps(split))
    monkeypatch.chdir(workplace)
    return stems[:3]


def type_here(typed: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Runs command lines in this process, which has loaded the libraries; returns their output."""
    printed = []
    for line in typed.splitlines():
        python, program, *arguments = shlex.split(line, comments=True)
        assert (python, program) == ("python", "cli.py")
        code = main.run_command(arguments)
        output, errors = capfd.readouterr()
        assert code == 0, f"{line}\n{output}\n{errors}"
        printed.append(output)
    return printed


@pytest.mark.usefixtures("three")
def test_every_example_of_the_page_on_a_first_build_runs(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs/first-build.md"
    typed = "\n".join(blocks(page, "bash"))
    assert [line.split()[2] for line in typed.splitlines()] == [
        *("check", "build", "status", "verify", "materialize", "labels"),
    ]
    type_here(typed, capfd)
    assert (workplace / "embeddings/mm_imdb1_globals_aug70_manifest.json").exists()
    (code,) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), {})  # the page's own code
    losses = [float(line.split()[1]) for line in capfd.readouterr().out.splitlines()]
    assert len(losses) == 10


def test_every_example_of_the_page_on_additions_runs(
    workplace: Path, three: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    data, late = workplace / "imdb/dataset", workplace / "late"
    late.mkdir()
    for file in list(data.glob(f"{three[-1]}.*")):
        file.rename(late / file.name)
    base = "python cli.py build --data-dir imdb/dataset --store features --features clip_image"
    feature, views, samples, changed = blocks(ROOT / "docs/adding-later.md", "bash")
    type_here("\n".join([base, feature, views]), capfd)
    for file in late.iterdir():
        file.rename(data / file.name)
    type_here(samples, capfd)
    before = FeatureStore(workplace / "features")
    (data / f"{three[-1]}.json").write_text('{"plot": "fixed"}')
    type_here(changed, capfd)
    after = FeatureStore(workplace / "features")
    assert after.records[:-1] == before.records[:-1]
    assert before.records[-1] != after.records[-1]
    assert after.records[-1].words == 1
    spec = after.spec
    assert (spec.samples, spec.views, list(spec.dims)) == (3, 140, ["clip_image", "blip2_text"])


def test_every_example_of_the_page_on_looking_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stem = min((workplace / "imdb/dataset").glob("*.json")).stem
    monkeypatch.setenv("STEM", stem)
    monkeypatch.chdir(workplace)
    store_of(workplace / "features", workplace / "imdb/dataset", chunks=[0])
    replaying, reporting = blocks(ROOT / "docs/looking-at-a-store.md", "bash")
    *drawn, redirected = os.path.expandvars(replaying).splitlines()
    shown, _ = type_here("\n".join(drawn), capfd)
    assert f"'{stem}': sample 0" in shown
    assert "view 7: crop" in shown
    with Image.open(workplace / "view-7.png") as view, Image.open(workplace / "views.png") as sheet:
        assert view.size == (224, 224)
        assert min(sheet.size) > 600
    typed, _, file = redirected.partition(" > ")
    assert file == "views.json"
    [printed] = type_here(typed, capfd)
    assert json.loads(printed)["stem"] == stem
    type_here(reporting.replace("\\\n", ""), capfd)
    assert "clip_image with clip_text" in (workplace / "report.html").read_text("utf-8")


def test_every_example_of_the_page_on_recipes_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs/recipes.md"
    (workplace / "photos").mkdir()
    for number in range(2):
        photo(number).save(workplace / f"photos/{number}.png")
        (workplace / f"photos/{number}.txt").write_text(text_of(number))
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    augment, pipeline, albumentations, build = blocks(page, "python")
    Path("augment.py").write_text(augment)
    Path("pipeline.py").write_text(pipeline)
    tables = blocks(page, "toml")
    if importlib.util.find_spec("albumentations") is not None:
        Path("albumented.py").write_text(albumentations)
        tables.append('[recipe.image]\nname = "albumented:strong"')
    for number, table in enumerate(tables):
        Path("views.toml").write_text(
            f'views = 3\n{table}\n[collection]\nkind = "folder"\npath = "photos"'
        )
        typed = f"python cli.py build --store s{number} --config views.toml --producers 1"
        type_here(typed, capfd)
        store = FeatureStore(Path(f"s{number}"))
        assert store.complete
        assert not store.bad_inputs
    exec(compile(build, str(page), "exec"), {})  # the page's own code
    assert FeatureStore(Path("from_python")).complete
