import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from consumers.backbones.config import BackboneConfig
from consumers.config import BuildConfig, CompleteConfig, expand_models
from consumers.config_file import read_toml
from consumers.decisions import chunk_of
from consumers.resume.completion import completed
from consumers.workers.share import Share
from featurestore.errors import ConfigError, InputError, StoreMismatchError
from featurestore.records import FEATURES, Sample
from featurestore.samples import SampleList
from featurestore.storage.fingerprint import Fingerprint, compare_fingerprints
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from producers.recipes.images.fixed import Flip
from producers.recipes.images.presets import recorded_image_recipe
from producers.recipes.images.random_crops import Crop, Simclr
from producers.recipes.recipe import Recipe
from producers.recipes.texts.hiding import Mask
from producers.recipes.texts.presets import recorded_text_recipe
from producers.sources.collection import CollectionConfig
from producers.sources.pairs import PairPlaces
from producers.sources.scan import Scan
from tests.featurestore.stores import DIMS, make_fingerprint, make_store

DINO = BackboneConfig(adapter="transformers-image", model="facebook/dinov2-base")

# Per field: values that are accepted and values that are refused. A new field must be added here.
ACCEPTED: dict[str, list[Any]] = {
    "data_dir": [Path("data")],
    "data": [Path("photos")],
    "collection": [CollectionConfig(kind="table", path="t.csv")],
    "store": [Path("store")],
    "follow_links": [True, False],
    "resume": [True, False],
    "append": [True, False],
    "overwrite": [True, False],
    "views": [1, 70, None],
    "seed": [0, 2**63],
    "image_recipe": [None, Crop(flip=0.0)],
    "text_recipe": [None, Mask(share=1.0)],
    "features": [("clip_text",), FEATURES, None],
    "models": [{}, {"clip_image": "x/y"}],
    "batch_sizes": [{}, {"blip2_text": 1}],
    "backbones": [{}, {"dino": DINO}, {"a" * 64: DINO, "d_2": DINO}],
    "producers": [0, 8],
    "threads": [0, 8],
    "slots": [0, 8],
    "chunk": [0, 64],
    "codec": [None, "none", "zstd"],
    "device": ["auto", "cuda:1"],
    "dtype": ["auto", "float32", "bfloat16", "float16"],
    "bad_sample": ["placeholder", "fail"],
    "allow_version_change": [True, False],
    "verify_inputs": [True, False],
    "remake_changed": [True, False],
    "sample_timeout_s": [0.1, 300],
    "worker": [None, Share(1, 4)],
    "devices": [(), ("all",), ("cpu", "cpu")],
    "ray": ["local", "auto", "head:6379"],
    "ray_workers": [1, 16],
}
REFUSED: dict[str, list[Any]] = {
    "image_recipe": [Mask()],
    "text_recipe": [Simclr()],
    "views": [0, -1],
    "seed": [-1],
    "features": [(), ("clip_text", "clip_text"), ("clip",), ("",)],
    "models": [{"clip": "x"}, {"blip2": "x"}],
    "batch_sizes": [{"clip_text": 0}, {"clip_text": -1}, {"blip2": 4}],
    "backbones": [
        {name: DINO}
        for name in (
            *("clip_image", "records", "blip2", "labels", "index", "stem", "view", "bad"),
            *("Dino", "2d", "a-b"),
        )
    ],
    "producers": [-1],
    "threads": [-1],
    "slots": [-1],
    "chunk": [-8],
    "codec": ["gzip", ""],
    "dtype": ["float64", "", "FLOAT32"],
    "bad_sample": ["skip", ""],
    "sample_timeout_s": [0, -1.0, math.nan, math.inf],
    "ray": ["ray://head:10001"],
    "ray_workers": [0, -1],
}
NOT_CHECKED = {"data_dir", "data", "collection", "store", "resume", "overwrite", "device"}
NOT_CHECKED |= {"allow_version_change"}
NOT_CHECKED |= {"worker", "devices"}  # the parser and the parent process check them
NOT_CHECKED |= {"follow_links", "append", "verify_inputs", "remake_changed"}
TOML = {
    "data_dir": ('"d"', "1"),
    "data": ('"d"', "1"),
    "collection": ('{kind = "folder", path = "d"}', '"folder"'),
    "store": ('"s"', "[]"),
    "follow_links": ("true", '"yes"'),
    "resume": ("true", "1"),
    "append": ("true", '"yes"'),
    "overwrite": ("false", '"no"'),
    "views": ("7", "7.0"),
    "seed": ("9", "true"),
    "features": ('["clip_text"]', '"clip_text"'),
    "models": ('{blip2 = "b"}', "{clip_text = 1}"),
    "batch_sizes": ("{clip_text = 4}", '{clip_text = "4"}'),
    "backbones": ('{dino = {adapter = "timm", model = "x"}}', "{dino = 1}"),
    "producers": ("2", '"2"'),
    "threads": ("2", '"2"'),
    "slots": ("3", "false"),
    "chunk": ("8", "8.5"),
    "codec": ('"zstd"', "true"),
    "device": ('"cpu"', "0"),
    "dtype": ('"float32"', "32"),
    "bad_sample": ('"fail"', "true"),
    "allow_version_change": ("true", "0"),
    "verify_inputs": ("true", "1"),
    "remake_changed": ("true", "1"),
    "sample_timeout_s": ("1.5", "true"),
    "worker": ('"0/2"', "2"),
    "devices": ('["cpu", "cpu"]', '"all"'),
    "ray": ('"local"', "1"),
    "ray_workers": ("2", '"2"'),
}
NAMES = [f.name for f in fields(BuildConfig)]


def config(**changes: Any) -> BuildConfig:
    inputs: dict[str, Any] = (
        {} if {"data", "collection"} & set(changes) else {"data_dir": Path("d")}
    )
    needed: dict[str, Any] = {}
    if {"worker", "devices", "ray", "ray_workers"} & set(changes):
        needed["resume"] = True
    if {"ray", "ray_workers"} & set(changes):
        needed |= {"ray": "local", "ray_workers": 2}
    return BuildConfig(**inputs | {"store": Path("s")} | needed | changes)


def test_no_field_is_forgotten() -> None:
    assert set(ACCEPTED) == set(NAMES)
    assert set(REFUSED) | NOT_CHECKED == set(NAMES)
    assert set(TOML) == set(NAMES) - {"image_recipe", "text_recipe"}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in ACCEPTED.items() for v in vs])
def test_accepted(name: str, value: Any) -> None:
    assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_refused_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    message = str(caught.value).replace("-", "_")
    assert name.rstrip("s") in message
    found = next(iter(value), "") if isinstance(value, (dict, tuple)) else value
    found = found.name if isinstance(found, Recipe) else found
    assert str(found).replace("-", "_") in message


def test_resume_and_overwrite_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="choose one"):
        config(resume=True, overwrite=True)


def one_pair() -> Scan:
    """MM-IMDb with one sample."""
    samples = SampleList.of([Sample(0, "a", "a.jpg", "a.json")])
    return Scan(CollectionConfig.mm_imdb("d"), samples, PairPlaces(Path("d"), samples))


def test_the_defaults_are_the_papers() -> None:
    found = completed(config(), None, one_pair())
    assert (found.views, found.seed, found.features) == (70, 123, FEATURES)
    assert (found.image_recipe, found.text_recipe) == (Simclr(), Mask())


def test_expand_models() -> None:
    assert expand_models({"blip2": "b", "clip_text": "t"}) == {
        "blip2_image": "b",
        "blip2_text": "b",
        "clip_text": "t",
    }
    assert expand_models({"blip2": "b", "blip2_text": "t"})["blip2_text"] == "t"
    with pytest.raises(ConfigError, match="found 'clip'"):
        expand_models({"clip": "x"})


# --- TOML ---


def toml(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "build.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_toml(path)


@pytest.mark.parametrize("name", TOML)
def test_toml_field(tmp_path: Path, name: str) -> None:
    good, bad = TOML[name]
    values = toml(tmp_path, f"{name} = {good}")
    assert list(values) == [name]
    config(**values)
    where = r"\[backbones.dino\]" if name == "backbones" else name
    with pytest.raises(ConfigError, match=f"build.toml: {where} has the wrong type"):
        toml(tmp_path, f"{name} = {bad}")


def test_toml_values(tmp_path: Path) -> None:
    values = toml(
        tmp_path,
        'store = "東京"\nfeatures = ["clip_text"]\nsample_timeout_s = 3\n[models]\nblip2 = "b"',
    )
    assert values == {
        "store": tmp_path / "東京",
        "features": ("clip_text",),
        "sample_timeout_s": 3,
        "models": {"blip2_image": "b", "blip2_text": "b"},
    }


@pytest.mark.parametrize(
    "text", ["views = 1\nviews = 2", "views =", "x", "views = 1 # \udcff", "\ufeff[", "{}"]
)
def test_not_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        toml(tmp_path, text)


def test_a_byte_order_mark_is_no_part_of_the_toml(tmp_path: Path) -> None:
    assert toml(tmp_path, "\ufeffviews = 3") == {"views": 3}
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        toml(tmp_path, "\ufeff\ufeffviews = 3")


def test_toml_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="not a readable"):
            read_toml(path)


def test_models_beside_the_file_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project/ckpt/clip").mkdir(parents=True)
    (tmp_path / "project/ckpt/edge.pt").write_bytes(b"weights")
    text = (
        '[models]\nclip_image = "ckpt/clip"\nclip_text = "org/model"\n'
        '[backbones.edge]\nadapter = "edgy:load"\nmodel = "ckpt/edge.pt"\n'
        '[backbones.none]\nadapter = "edgy:load"\n'
    )
    monkeypatch.chdir(tmp_path)
    values = toml(tmp_path / "project", text)
    beside = tmp_path / "project/ckpt"
    assert values["models"] == {"clip_image": str(beside / "clip"), "clip_text": "org/model"}
    assert values["backbones"]["edge"].model == str(beside / "edge.pt")
    assert values["backbones"]["none"].model == ""
    monkeypatch.chdir(tmp_path / "project")
    assert toml(tmp_path / "project", text)["models"]["clip_image"] == "ckpt/clip"


def test_a_chunk_that_a_store_cannot_change_is_not_advised(tmp_path: Path) -> None:
    """With the store's own chunk, a new feature may not fill whole memory pages."""
    make_store(tmp_path / "store", samples=4, views=4, chunk=4, dims={"clip_image": 64})
    stored = FeatureStore(tmp_path / "store")
    options: dict[str, Any] = {"data_dir": tmp_path, "store": stored.path, "views": 4}
    options |= {"image_recipe": Simclr(), "text_recipe": Mask()}
    for chunk in (0, stored.spec.chunk):
        given = CompleteConfig(**options, chunk=chunk)
        with pytest.raises(InputError, match=r"has chunks of 4 samples.*numbers\); nothing") as e:
            chunk_of(given, stored, {"edge": 40})
        assert "Build them into another --store." in str(e.value)
        assert "multiple" not in str(e.value)
    assert chunk_of(CompleteConfig(**options), stored, {"edge": 64}) == 4


@pytest.mark.parametrize("items", ["[1]", "[[1]]", "[true]"])
def test_toml_features_hold_strings(tmp_path: Path, items: str) -> None:
    with pytest.raises(ConfigError, match="features has the wrong type"):
        toml(tmp_path, f"features = {items}")


TABLE = """
features = ["clip_image", "dino"]
[models]
dino = "here/dino"
[backbones.dino]
adapter = "transformers-image"
model = "facebook/dinov2-base"
pooling = "mean"
size = 448
batch_size = 8
[backbones.roberta]
adapter = "transformers-text"
model = "FacebookAI/roberta-base"
max_length = 256
"""


def test_toml_backbones(tmp_path: Path) -> None:
    values = toml(tmp_path, TABLE)
    found = config(**values)
    assert found.features == ("clip_image", "dino")
    assert found.models == {"dino": "here/dino"}
    assert found.backbones == {
        "dino": BackboneConfig(
            adapter="transformers-image",
            model="facebook/dinov2-base",
            pooling="mean",
            size=448,
            batch_size=8,
        ),
        "roberta": BackboneConfig(
            adapter="transformers-text", model="FacebookAI/roberta-base", max_length=256
        ),
    }
    config(**values | {"batch_sizes": {"roberta": 4}})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("pool = 1", r"sets pool, which is not known.\nKnown: adapter, model, pooling, size"),
        ("size = '448'", "size has the wrong type: '448'"),
        ("size = true", "size has the wrong type: True"),
        ("model = 1", "model has the wrong type: 1"),
        ("adapter = ''", "names its adapter"),
        ("model = 'x'", "names no adapter"),
        ("adapter = 'timm'\nsize = -1", "size is at least 0, found -1"),
    ],
)
def test_toml_backbones_refused(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        toml(tmp_path, f"[backbones.dino]\n{line}")


def test_features_may_be_declared_and_must_be(tmp_path: Path) -> None:
    assert config(features=("dino",), backbones={"dino": DINO}).features == ("dino",)
    for name, value in (("features", ("vit",)), ("models", {"vit": "x"})):
        with pytest.raises(ConfigError, match=r"clip_image.*dino, found 'vit'"):
            config(backbones={"dino": DINO}, **{name: value})
    assert expand_models({"dino": "d", "blip2": "b"}, ["dino"])["dino"] == "d"


def test_toml_unknown_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sets view, wrkr, which is not known.\nKnown:.*views"):
        toml(tmp_path, "wrkr = 1\nview = 2\nseed = 1")


# --- the fingerprint ---

STORED = make_fingerprint(StoreSpec(2, 4, 4, DIMS), ["a", "b"])
ALLOWED = ["device_kind", "version.pillow", "version.torch"]
INFORMATIVE = ["clip_image.model", "clip_text.model"]


def compare(
    new: Fingerprint, *, allow: bool = False, stored: Fingerprint = STORED
) -> dict[str, str]:
    return compare_fingerprints(Path("s"), stored, new, allow_version_change=allow)


def other(value: str | int) -> str | int:
    return value + 1 if isinstance(value, int) else value + "x"


def test_equal_fingerprints() -> None:
    assert compare(dict(STORED)) == compare(dict(STORED), allow=True) == {}


@pytest.mark.parametrize("name", [n for n in STORED if n not in INFORMATIVE])
def test_a_changed_field_is_refused_by_name(name: str) -> None:
    new = STORED | {name: other(STORED[name])}
    for allow in [False] if name in ALLOWED else [False, True]:
        with pytest.raises(StoreMismatchError) as caught:
            compare(new, allow=allow)
        error = caught.value
        assert (error.field, error.stored, error.new) == (name, STORED[name], new[name])
        assert len(str(error).splitlines()) <= 4
        assert ("--allow-version-change" in str(error)) == (name in ALLOWED)


@pytest.mark.parametrize("name", [n for n in STORED if n not in (*INFORMATIVE, "codec")])
def test_a_missing_or_new_field_is_refused_by_name(name: str) -> None:
    fewer = {n: v for n, v in STORED.items() if n != name}
    for stored, new in ((STORED, fewer), (fewer, STORED)):
        with pytest.raises(StoreMismatchError) as caught:
            compare(new, stored=stored)
        assert caught.value.field == name
        assert None in (caught.value.stored, caught.value.new)


def test_a_store_that_names_no_codec_has_none() -> None:
    older = {n: v for n, v in STORED.items() if n != "codec"}
    assert compare(STORED, stored=older) == {}
    with pytest.raises(StoreMismatchError) as caught:
        compare(STORED | {"codec": "zstd"}, stored=older)
    assert (caught.value.field, caught.value.stored, caught.value.new) == ("codec", "none", "zstd")


@pytest.mark.parametrize("name", INFORMATIVE)
def test_the_models_name_is_not_compared(name: str) -> None:
    assert compare(STORED | {name: "/another/folder"}) == {}


def test_versions_may_change_with_permission_and_are_told() -> None:
    new = STORED | {name: other(STORED[name]) for name in ALLOWED}
    assert compare(new, allow=True) == {
        "device_kind": "cpu -> cpux",
        "version.pillow": "12.0.0 -> 12.0.0x",
        "version.torch": "2.13.0 -> 2.13.0x",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": ("clip_image", "minilm")},
        {"models": {"minilm": "folder"}},
        {"batch_sizes": {"minilm": 8}},
    ],
)
def test_an_unknown_feature_is_shown_the_way_to_declare_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="found 'minilm'") as refused:
        BuildConfig(data_dir=Path("d"), store=Path("s"), **wrong)
    *_, last = str(refused.value).splitlines()
    assert "[backbones.NAME]" in last
    assert "--config" in last


def test_an_unknown_model_is_shown_the_way_as_well() -> None:
    with pytest.raises(ConfigError, match=r"or blip2, found 'minilm'.*\n.*--config"):
        expand_models({"minilm": "folder"})


# Recipes ----------------------------------------------------------------------------------------


def test_recipes_of_a_toml_file(tmp_path: Path) -> None:
    values = toml(
        tmp_path,
        '[recipe.image]\nname = "crop"\nscale = [0.25, 1]\nflip = 0\n'
        '[recipe.text]\nname = "mask"\nshare = 0.3\n',
    )
    assert values == {
        "image_recipe": Crop(scale=(0.25, 1.0), flip=0.0),
        "text_recipe": Mask(share=0.3),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("recipe = 1", "a recipe is a table"),
        ('recipe.image = "crop"', "a recipe is a table"),
        ('[recipe.sound]\nname = "none"', r"\[recipe.sound\] is not known"),
        ("[recipe.image]", "name is one of .*simclr.*, found no name"),
        ('[recipe.image]\nname = "mask"', "name is one of .*crop.*, found 'mask'"),
        ('[recipe.image]\nname = "crop"\nblur = 1', "crop does not have blur.\nIt has: scale"),
        ('[recipe.image]\nname = "none"\nflip = 1', "It has: no parameters"),
        ('[recipe.image]\nname = "crop"\nscale = 1', r"scale is 2 numbers, found 1"),
        ('[recipe.image]\nname = "crop"\nscale = [1]', r"scale is 2 numbers, found \[1\]"),
        ('[recipe.image]\nname = "crop"\nscale = [0.1, "1"]', "scale is a number, found '1'"),
        ('[recipe.image]\nname = "crop"\nflip = true', "flip is a number, found True"),
        (
            '[recipe.image]\nname = "crop"\nscale = [0.5, 0.1]',
            "scale is two numbers above 0, at most 1, in ascending order",
        ),
        ('[recipe.image]\nname = "crop"\nscale = [0, 1]', "above 0, at most 1, in ascending order"),
        (
            '[recipe.image]\nname = "crop"\nratio = [0.001, 1]',
            "ratio is two numbers from 0.02 to 50",
        ),
        ('[recipe.image]\nname = "crop"\nflip = 1.5', "flip is a number from 0 to 1, found 1.5"),
        ('[recipe.image]\nname = "simclr"\njitter = [1, 1, 1, 0.6]', "of hue at most 0.5"),
        (
            '[recipe.image]\nname = "simclr"\nsigma = [0, 1]',
            "sigma is two numbers from 0.001 to 1000",
        ),
        ('[recipe.image]\nname = "simclr"\nblur = nan', "blur is a number from 0 to 1"),
        ('[recipe.text]\nname = "mask"\nshare = 0', "share is a number from above 0 to 1"),
        ('[recipe.text]\nname = "mask"\ntoken = 1', "token is a string, found 1"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        toml(tmp_path, text)


@pytest.mark.parametrize("recipe", [Crop(scale=(0.1, 0.3)), Simclr(blur=0.0), Mask(token="_")])
def test_a_recipe_is_found_again_by_what_a_store_records(recipe: Any) -> None:
    find = recorded_text_recipe if recipe.modality == "text" else recorded_image_recipe
    assert find(recipe.settings()) == recipe
    field = f"{recipe.modality}_recipe"
    assert find(recipe.settings() | {field: f"{recipe.name}-99"}) is None


def test_fixed_numbers_of_views() -> None:
    found = one_pair()
    assert completed(config(image_recipe=Flip(), features=("clip_image",)), None, found).views == 2
    assert completed(config(image_recipe=Flip(), views=2), None, found).views == 2
    with pytest.raises(ConfigError, match=r"--views is 2 with the recipe 'flip'.*found 3"):
        completed(config(image_recipe=Flip(), views=3), None, found)
    # The recipe of an input that no feature uses does not matter.
    texts = config(image_recipe=Flip(), views=3, features=("clip_text",))
    assert completed(texts, None, found).views == 3
