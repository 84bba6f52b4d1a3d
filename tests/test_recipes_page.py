"""The page on recipes: its pictures, tables and examples are those of the code."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers.config_file import read_toml
from featurestore.records import view_seeds
from producers.recipes.images.presets import IMAGE_RECIPES
from producers.recipes.recipe import Recipe
from producers.recipes.texts.presets import TEXT_RECIPES
from tests.conftest import ROOT
from tools.recipe_pictures import picture

PAGE = (ROOT / "docs/recipes.md").read_text("utf-8")
PICTURES = ROOT / "docs/recipes"


def rows(title: str) -> dict[str, str]:
    """The last cell of each row of the first table under a title, by the recipe's name."""
    section = PAGE[PAGE.index(f"\n## {title}\n") :]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    found = {re.sub(r"[\[`]|\].*", "", first.strip()): last for first, *_, last in cells}
    return {name: last for name, last in found.items() if name not in ("name", "module:function")}


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_pictures_are_what_the_program_draws(name: str) -> None:
    """JPEG changes pixels a little; another recipe's picture differs a lot."""
    made = picture(IMAGE_RECIPES[name]()).astype(np.int16)
    with Image.open(PICTURES / f"{name}.jpg") as opened:
        drawn = np.asarray(opened).astype(np.int16)
    assert drawn.shape == made.shape
    assert np.abs(drawn - made).mean() < 3


def test_every_recipe_has_a_picture_and_no_other_file_is_there() -> None:
    assert {path.stem for path in PICTURES.iterdir()} == set(IMAGE_RECIPES)


def check_defaults(kind: type[Recipe], cell: str) -> None:
    for name, said in re.findall(r"`(\w+) = ([^`]*)`", cell):
        value = getattr(kind(), name)
        if said != '"model"':  # explained beside the default
            assert json.loads(said) == (list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize(("title", "kinds"), [("Images", IMAGE_RECIPES), ("Texts", TEXT_RECIPES)])
def test_tables_have_every_recipe_with_its_defaults(
    title: str, kinds: dict[str, type[Recipe]]
) -> None:
    found = rows(title)
    assert set(kinds) <= set(found)
    for name, kind in kinds.items():
        check_defaults(kind, found[name])
        crop = {f.name for f in fields(IMAGE_RECIPES["crop"])} if title == "Images" else set()
        named = set(re.findall(r"`(\w+)(?: =|`)", found[name])) | crop
        assert {f.name for f in fields(kind)} <= named, name


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    toml = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert toml is not None
    (tmp_path / "build.toml").write_text(toml[1])
    values = read_toml(tmp_path / "build.toml")
    assert values["image_recipe"].local_scale == (0.05, 0.3)
    assert values["text_recipe"].share == 0.2


def test_the_texts_are_those_of_the_recipes() -> None:
    block = re.search(r"```text\n(none .*?)```", PAGE, re.DOTALL)
    assert block is not None
    lines = dict(line.split(maxsplit=1) for line in block[1].splitlines())
    clean = lines.pop("none")
    assert set(lines) == {"mask", "drop", "sentences"}
    seeds = view_seeds(123, 0, [1], "text")
    for name, text in lines.items():
        made = TEXT_RECIPES[name]().draw(clean, [1], seeds, has_clean=False)
        assert made.texts() == [text]
