"""Functions of the user as recipes: which source files they have, and what may go wrong."""

from __future__ import annotations

import json
import random
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers.config_file import read_toml
from featurestore.errors import BadSampleError, ConfigError, RecipeError
from producers.recipes import custom, function
from producers.recipes.images.custom import CustomImage
from producers.recipes.images.geometry import ImageSpec, Poster, clean_view
from producers.recipes.images.presets import image_recipe, recorded_image_recipe
from producers.recipes.source_files import find_sources
from producers.recipes.texts.custom import CustomText
from producers.recipes.texts.presets import text_recipe

Write = Callable[..., Path]
IMPORTS = "from io import BytesIO\nfrom pathlib import Path\nfrom PIL import Image"
SEEDS = (3, 2**32 - 1, 5)


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes files by name into a folder; modules that recipes import are forgotten afterwards."""
    before = set(sys.modules)

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    for name in set(sys.modules) & (set(function._finder.files) - before):
        del sys.modules[name]
    function._finder.files.clear()
    custom._calls.cache_clear()


def files_of(folder: Path, module: str = "augment") -> list[str]:
    return list(find_sources(module, folder, "here").digests)


def texts(folder: Path, text: str = "one two three", name: str = "f") -> list[str]:
    recipe = CustomText(f"augment:{name}", str(folder))
    views = range(1, len(SEEDS) + 1)
    return recipe.draw(text, views, SEEDS, has_clean=True).texts()


def images(folder: Path, image: Image.Image, spec: ImageSpec) -> np.ndarray:
    out = np.empty((len(SEEDS), spec.size, spec.size, 3), np.uint8)
    views = range(1, len(SEEDS) + 1)
    CustomImage("augment:f", str(folder)).make(Poster(image), spec, views, SEEDS, out)
    return out


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_the_files_that_a_module_imports_from_its_folder_are_found(write: Write) -> None:
    folder = write(
        augment="import numpy\nfrom one import f\nif 1:\n    import parts.inner.deep as d\n",
        one="from __future__ import annotations\nimport os, random\ndef f(t, r): import late",
        late="from datasets import load_dataset\nfrom spaces import leaf, value\n",
        unused="",
        parts__in____init__="from . import near",
        parts__in__near="from .inner import other",
        parts__in__unused="",
        parts__in__inner__in____init__="",
        parts__in__inner__in__deep="from ..sibling import *\nfrom ...augment import no",
        parts__in__inner__in__other="import yaml",
        parts__in__sibling="",
        spaces__in__leaf="import one",
        datasets__in__notes="",
    )
    assert files_of(folder) == [
        *("augment", "late", "one", "parts", "parts.inner", "parts.inner.deep"),
        *("parts.inner.other", "parts.near", "parts.sibling", "spaces.leaf"),
    ]
    found = find_sources("augment", folder, "here")
    assert found.imported == {"numpy", "datasets", "yaml"}
    assert found.distributions == ("datasets", "numpy", "pyyaml")


def test_the_module_of_an_installed_package_has_that_packages_version() -> None:
    recipe = CustomText("click.utils:make_str")
    assert "click" in recipe.distributions
    assert {name.partition(".")[0] for name, _ in recipe.sha256} == {"click"}


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "augment:f", r"no module 'augment' in .*\n.*PYTHONPATH"),
        ({"augment": ""}, "augment:f", r"augment\.py has no function 'f'"),
        ({"augment": "def g(): f = 1\nprint(f)"}, "augment:f", "has no function 'f'"),
        ({"augment": "def f(:"}, "augment:f", r"augment\.py, line 1 is not Python"),
        ({"augment": "import b\nf = 1", "b": "\n?"}, "augment:f", r"b\.py, line 2 is not Python"),
        ({"augment": "import nowhere_xyz\nf = 1"}, "augment:f", r"line 1 imports nowhere_xyz"),
        ({"random": "def f(): 1"}, "random:f", "'random' is a module of Python's library"),
        ({"producers": "def f(): 1"}, "producers:f", "of manyviews"),
        ({"click": "def f(): 1"}, "click:f", r"(?s)name of an installed package.*another name"),
        ({"augment": "import click\nf = 1", "click": ""}, "augment:f", "an installed package"),
        ({}, "augment:", "name is module:function, found 'augment:'"),
        ({}, "a b:f", "name is module:function"),
        ({}, "a/b:f", "name is module:function"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused_without_running_it(
    write: Write, files: dict[str, str], name: str, message: str
) -> None:
    folder = write(**{module: f"{code}\nraise SystemExit" for module, code in files.items()})
    with pytest.raises(ConfigError, match=message):
        image_recipe({"name": name}, "[recipe.image]", folder)


@pytest.mark.parametrize(
    "code",
    [
        "def f(t, r): ...",
        "class f: ...",
        "f = print",
        "a, (f, b) = 1, (2, 3)",
        "from os.path import join as f",
        "import json as f",
        "if 1:\n    try:\n        import nowhere_xyz\n    except ImportError:\n        f = 1",
        "from json import *",
        "def __getattr__(name): ...",
        "with open('x') as f: ...",
    ],
)
def test_a_function_may_come_from_anywhere(write: Write, code: str) -> None:
    assert CustomText("augment:f", str(write(augment=code))).sha256


def test_a_toml_file_names_functions_beside_it(write: Write, tmp_path: Path) -> None:
    write(augment="def image(i, r): ...\ndef text(t, r): ...")
    toml = tmp_path / "views.toml"
    toml.write_text(
        '[recipe.image]\nname = "augment:image"\n[recipe.text]\nname = "augment:text"\n'
    )
    read = read_toml(toml)
    assert read["image_recipe"] == CustomImage("augment:image", str(tmp_path))
    assert read["text_recipe"] == CustomText("augment:text", str(tmp_path))
    for recipe, parse in ((read["image_recipe"], image_recipe), (read["text_recipe"], text_recipe)):
        assert parse(json.loads(json.dumps(recipe.values()))) == recipe
    toml.write_text('[recipe.image]\nname = "augment:image"\nfolder = "x"\n')
    with pytest.raises(ConfigError, match="does not have folder"):
        read_toml(toml)


def test_a_stores_recipe_is_found_on_the_python_path(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(augment="def f(i, r): ...")
    settings = CustomImage("augment:f", str(folder)).settings()
    with pytest.raises(
        ConfigError, match=r"(?s)made by augment:f.*no module.*--config.*PYTHONPATH"
    ):
        recorded_image_recipe(settings)
    assert recorded_image_recipe(settings, folder) == CustomImage("augment:f", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    assert recorded_image_recipe(settings) == CustomImage("augment:f", str(folder))
    assert recorded_image_recipe(settings | {"image_recipe": "augment:f-0"}) is None


def test_the_function_gets_its_own_image_and_a_generator_of_the_view(write: Write) -> None:
    folder = write(
        augment="""
        from PIL import ImageDraw

        def f(image, rng):
            assert image.mode == "RGB" and image.size == (40, 30)
            assert image.getpixel((0, 0)) != (255, 0, 0)
            ImageDraw.Draw(image).rectangle((0, 0, 20, 10), (255, 0, 0))
            image.putpixel((39, 29), tuple(rng.integers(0, 256, 3).tolist()))
            return image.convert("RGBA")
        """
    )
    image, spec = picture(), ImageSpec(24, 30)
    before = image.tobytes()
    made = images(folder, image, spec)
    assert image.tobytes() == before
    for seed, view in zip(SEEDS, made, strict=True):
        expected = image.copy()
        expected.paste((255, 0, 0), (0, 0, 21, 11))
        colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
        expected.putpixel((39, 29), colour)
        np.testing.assert_array_equal(view, clean_view(expected, spec))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "LA"])
def test_an_image_of_the_size_is_used_as_it_is(write: Write, mode: str) -> None:
    folder = write(augment=f"def f(i, r): return i.crop((2, 3, 26, 27)).convert({mode!r})")
    made = images(folder, picture(), ImageSpec(24, 30))
    expected = np.asarray(picture().crop((2, 3, 26, 27)).convert(mode).convert("RGB"))
    assert all(np.array_equal(view, expected) for view in made)


def test_global_generators_are_seeded_and_restored(write: Write) -> None:
    folder = write(
        augment="""
        import random
        import numpy as np

        def f(text, rng):
            import torch

            drawn = random.random(), np.random.rand(), torch.rand(1).item(), rng.random()
            return " ".join(map(str, drawn))
        """
    )
    import torch

    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    found = texts(folder)
    assert found == [found[0], *(texts(folder)[1:])]
    assert len(set(found)) == 4
    later = [random.random(), np.random.rand(), torch.rand(1).item()]
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    assert later == [random.random(), np.random.rand(), torch.rand(1).item()]
    assert float(found[1].split()[-1]) == np.random.default_rng(SEEDS[0]).random()


FAILURES = {
    "def f(x, r): raise ValueError('no such colour')": (
        r"augment:f raised ValueError: no such colour \(.*augment\.py, line 1\)\."
    ),
    "def f(x, r): raise SystemExit(0)": "raised SystemExit: 0",
    "def f(x): return x": "raised TypeError: f\\(\\) takes 1 positional argument but 2 were given",
    "f = 5": "is no function: int",
    "if 0: f = 5": "is no such function",
    "f = 1 / 0": r"could not be imported: ZeroDivisionError: division by zero \(.*line 1\)",
    "import sys\nf = sys.exit('bye')": "could not be imported: SystemExit: bye",
    "def f(x, r): raise ValueError('\\ud800' * 5000)": r"raised ValueError: \\ud800.* …",
    "def f(x, r):\n    import os, secrets\n    return secrets.token_hex()": "returned",
    "import importlib\nf = importlib.import_module('hidden')": "No module named 'hidden'",
}


@pytest.mark.parametrize("code", FAILURES)
def test_failures_of_a_function_are_named(write: Write, code: str) -> None:
    folder = write(augment=code, hidden="")
    with pytest.raises(RecipeError, match=FAILURES[code]) as raised:
        texts(folder)
    assert str(raised.value).count("\n") < 4
    str(raised.value).encode("utf-8")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("None", "returned NoneType, not a str"),
        ("b'x'", "returned bytes, not a str"),
        ("'ab\\ud800'", "half of a surrogate pair at character 2"),
    ],
)
def test_only_texts_are_taken(write: Write, value: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        texts(write(augment=f"def f(t, r): return {value}"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("None", "returned NoneType, not a PIL.Image"),
        ("__import__('numpy').zeros((5, 5, 3))", "returned ndarray, not a PIL.Image"),
        ("i.crop((3, 3, 3, 9))", "returned an image of 0 x 6 pixels"),
        ("Image.open(BytesIO(Path('cut.png').read_bytes()))", "cannot be read"),
    ],
)
def test_only_images_are_taken(
    write: Write, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(augment=f"{IMPORTS}\ndef f(i, r): return {value}")
    picture().save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match=problem):
        images(folder, picture(), ImageSpec(8, 8))


def test_views_that_differ_for_one_seed_are_refused(write: Write) -> None:
    folder = write(augment="import secrets\ndef f(t, r): return secrets.token_hex()")
    with pytest.raises(RecipeError, match="two results for one input and one seed"):
        texts(folder)
    folder = write(
        augment="from itertools import count\nn = count()\ndef f(i, r): return i.rotate(next(n))"
    )
    with pytest.raises(RecipeError, match="two results for one input and one seed"):
        images(folder, picture(), ImageSpec(8, 8))


def test_an_input_can_be_refused(write: Write) -> None:
    folder = write(
        augment="""
        from featurestore.errors import BadSampleError

        def f(text, rng):
            raise BadSampleError("too\\nshort", "\\ud800 only one word")
        """
    )
    with pytest.raises(BadSampleError) as raised:
        texts(folder)
    assert (raised.value.reason, raised.value.detail) == ("too short", "\\ud800 only one word")


def test_a_text_without_words_is_not_given_to_the_function(write: Write) -> None:
    folder = write(augment="def f(t, r): return t.split()[0]")
    assert texts(folder, " \n") == [" \n", "", "", ""]
    assert texts(folder, "a b") == ["a b", "a", "a", "a"]


def test_what_runs_is_what_was_recorded(write: Write) -> None:
    """Neither a file that changed since, nor the code that Python compiled of an older one."""
    folder = write(augment="import helper\ndef f(t, r): return helper.x", helper="x = 'old'")
    assert texts(folder)[1] == "old"
    recipe = CustomText("augment:f", str(folder))
    write(helper="x = 'new'")
    with pytest.raises(RecipeError, match=r"module helper in .* has another content"):
        recipe.sources()
    assert texts(folder)[1] == "new"
    assert list(folder.rglob("*.pyc")) == []


def test_files_that_are_missing_in_another_process_are_named(write: Write, tmp_path: Path) -> None:
    folder = write(augment="def f(t, r): return t")
    recipe = CustomText("augment:f", str(folder))
    (folder / "augment.py").unlink()
    with pytest.raises(RecipeError, match=r"augment:f is not found: .*no module 'augment'"):
        recipe.prepare()
