"""Custom backbones: the examples of the documentation, and each adapter against its library."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from consumers.backbones import declared
from consumers.backbones.config import BackboneConfig, parse_backbone
from consumers.backbones.declared import ADAPTERS, ENTRY_POINTS
from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import ConfigError
from featurestore.storage.store import FeatureStore
from tests.conftest import ROOT
from tests.consumers.library_models import make_library_models
from tests.test_docs import blocks
from tests.typed import typed

PAGE = ROOT / "docs/adding-a-model.md"
SAMPLES = 4


def tables() -> dict[str, BackboneConfig]:
    """Every ``[backbones.NAME]`` of the page."""
    found: dict[str, BackboneConfig] = {}
    for block in blocks(PAGE, "toml"):
        for name, table in tomllib.loads(block).get("backbones", {}).items():
            found[name] = parse_backbone("page", name, table)
    return found


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, demo_data: Path, checkpoints: dict[str, str]
) -> Path:
    """The inputs of the examples: a few samples, and tiny models in folders of their names."""
    folder = tmp_path_factory.mktemp("declared")
    data = folder / "imdb/dataset"
    data.mkdir(parents=True)
    stems = sorted(p.stem for p in (demo_data / "dataset").glob("*.json"))[6 : 6 + SAMPLES]
    for file in (f for stem in stems for f in (demo_data / "dataset").glob(f"{stem}.*")):
        shutil.copy(file, data)
    names = {config.adapter: folder / config.model for config in tables().values()}
    make_library_models(names, Path(checkpoints["clip_text"]))
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, str]) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("CLIP_MODEL_ID_IMG", checkpoints["clip_image"])
    return place


@pytest.fixture
def demo_checkpoints(here: Path, checkpoints: dict[str, str]) -> Path:
    """What ``make demo`` leaves in ``demo/checkpoints``."""
    folder = here / "demo/checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for model in set(checkpoints.values()):
        if not (folder / Path(model).name).exists():
            (folder / Path(model).name).symlink_to(model)
    return folder


def test_every_adapter_is_on_the_page() -> None:
    assert {config.adapter for config in tables().values()} == ADAPTERS.keys()
    text = PAGE.read_text("utf-8")
    for name, adapter in ADAPTERS.items():
        assert f"`{name}`" in text
        assert all(f"`{p}`" in text for p in adapter.poolings)


@pytest.fixture(scope="module")
def store(place: Path) -> FeatureStore:
    """A store with a feature of every adapter."""
    with contextlib.chdir(place):
        config = BuildConfig(
            data_dir=place / "imdb/dataset",
            store=place / "every",
            views=2,
            features=tuple(tables()),
            backbones=tables(),
            device="cpu",
            producers=1,
        )
        build(config)
    return FeatureStore(place / "every")


def poster(here: Path, stem: str) -> Image.Image:
    (path,) = (here / "imdb/dataset").glob(f"{stem}.jp*")
    with Image.open(path) as image:
        return image.convert("RGB")


def plot(here: Path, stem: str) -> str:
    return " ".join(json.loads((here / f"imdb/dataset/{stem}.json").read_text())["plot"])


def dinov2(folder: Path) -> Callable[..., Any]:
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda image, _: model(**processor(image, return_tensors="pt")).pooler_output


def minilm(folder: Path) -> Callable[..., Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return lambda _, text: model.encode([text], convert_to_tensor=True)


def roberta(folder: Path) -> Callable[..., Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(_: Any, text: str) -> Any:
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        return model(**ids).last_hidden_state.mean(1)

    return embed


def vit_augreg(folder: Path) -> Callable[..., Any]:
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    return lambda image, _: model(transform(image)[None])


def laion_image(folder: Path) -> Callable[..., Any]:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return lambda image, _: model.eval().encode_image(transform(image)[None])


def laion_text(folder: Path) -> Callable[..., Any]:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return lambda _, text: model.encode_text(tokenizer([text]))


REFERENCES = (dinov2, minilm, roberta, vit_augreg, laion_image, laion_text)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda function: function.__name__)
def test_the_clean_view_is_what_the_library_makes(
    here: Path, store: FeatureStore, reference: Callable[[Path], Callable[..., Any]]
) -> None:
    name = reference.__name__
    rows = store.read_chunk(name, 0)
    assert rows.shape[:2] == (SAMPLES, 2)
    assert rows.std(axis=0).max() > 1e-3  # different samples, different features
    embed = reference(here / tables()[name].model)
    with torch.inference_mode():
        expected = [embed(poster(here, stem), plot(here, stem))[0].numpy() for stem in store.stems]
    np.testing.assert_allclose(rows[:, 0], expected, atol=2e-5, rtol=2e-4)


def test_how_texts_are_cleaned_is_in_the_fingerprint(store: FeatureStore) -> None:
    assert store.fingerprint["laion_text.clean"] == "whitespace"
    assert {"version.open_clip_torch", "version.ftfy"} <= store.fingerprint.keys()


def test_what_the_page_says_to_type_works(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, more, own, _ = blocks(PAGE, "bash")
    (here / "build.toml").write_text(blocks(PAGE, "toml")[0])
    typed(first)
    spec = FeatureStore(here / "trial").spec
    assert (spec.views, list(spec.dims)) == (4, ["clip_image", "dinov2", "minilm"])
    # Adding: to a store of another feature, with as many views as it has.
    base = "python cli.py build --data-dir imdb/dataset --store features"
    typed(f"{base} --views 4 --features clip_image")
    typed(more.replace("--views 70", "--views 4"))
    assert list(FeatureStore(here / "features").spec.dims) == ["clip_image", "dinov2"]
    module, _, python = blocks(PAGE, "python")
    (here / "my_backbone.py").write_text(module)
    monkeypatch.syspath_prepend(str(here))  # PYTHONPATH=.
    monkeypatch.delitem(sys.modules, "my_backbone", raising=False)
    typed(own)
    exec(python, {"__name__": "__main__"})
    for name in ("own", "from_python"):
        made = FeatureStore(here / name)
        stem = made.stems[0]
        small = poster(here, stem).resize((64, 64), Image.Resampling.BICUBIC)
        pixels = np.asarray(small, np.float64) / 255
        quarters = pixels.reshape(2, 32, 2, 32, 3).mean((1, 3))  # [2, 2, 3]
        expected = quarters.transpose(2, 0, 1).ravel()
        np.testing.assert_allclose(made.read_chunk("colours", 0)[0, 0], expected, atol=1e-5)


def test_the_text_encoder_of_the_page_counts_tokens(
    demo_checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = demo_checkpoints.parents[1]
    (here / "my_text.py").write_text(blocks(PAGE, "python")[1])
    monkeypatch.syspath_prepend(str(here))  # PYTHONPATH=.
    monkeypatch.delitem(sys.modules, "my_text", raising=False)
    typed(blocks(PAGE, "bash")[3])
    made = FeatureStore(here / "words")
    assert (made.spec.views, dict(made.spec.dims)) == (4, {"words": 64})
    tokenizer = Tokenizer.from_file(str(demo_checkpoints / "sentence/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    ids = [np.array(tokenizer.encode(plot(here, stem)).ids) for stem in made.stems]
    expected = [np.bincount(row % 64, minlength=64) for row in ids]
    assert len({row.tobytes() for row in expected}) == SAMPLES
    np.testing.assert_array_equal(made.read_chunk("words", 0)[:, 0], expected)


def test_the_page_can_be_tried_with_the_models_of_the_demo(demo_checkpoints: Path) -> None:
    here = demo_checkpoints.parents[1]
    (here / "build.toml").write_text(blocks(PAGE, "toml")[0])
    (options,) = re.findall(r"^    (--model .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    typed(blocks(PAGE, "bash")[0].replace("--store trial", "--store tried") + " " + options)
    recorded = FeatureStore(here / "tried").fingerprint
    models = [recorded[f"{name}.model"] for name in ("clip_image", "dinov2", "minilm")]
    assert models == ["clip", "clip", "sentence"]


def test_a_package_offers_an_adapter_by_name(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tomllib.loads(blocks(PAGE, "toml")[-1])["project"]["entry-points"][ENTRY_POINTS]
    (tmp_path / "my_backbone.py").write_text(blocks(PAGE, "python")[0])
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = [f"[{ENTRY_POINTS}]", *(f"{name} = {target}" for name, target in point.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_backbone", raising=False)
    backbone = declared.load("mine", BackboneConfig(adapter="colours"), "cpu", "float32")
    assert (backbone.feature, backbone.dim) == ("mine", 12)
    with pytest.raises(ConfigError, match=r"Known adapters: .*colours; a custom one is"):
        declared.check("mine", BackboneConfig(adapter="colors"))


PATH_ADVICE = "must be on the Python path"


@pytest.mark.parametrize(
    ("code", "expected", "on_path"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_backbone'", False),
        ("import not_there_at_all", "No module named 'not_there_at_all'", True),
        ("def load(request:", "SyntaxError: ", True),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines", True),
        ("import sys; sys.exit('usage')", "SystemExit: usage", True),
        ("other = 1", "broken_backbone.py has no function 'load'", True),
        ("load = 1", "broken_backbone.py has no function 'load'", True),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, expected: str, on_path: bool
) -> None:
    if code is not None:
        (tmp_path / "broken_backbone.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_backbone", raising=False)
    with pytest.raises(ConfigError) as caught:
        declared.load("mine", BackboneConfig(adapter="broken_backbone:load"), "cpu", "float32")
    message = str(caught.value)
    assert "[backbones.mine]: the adapter broken_backbone:load" in message
    assert expected in message
    assert (PATH_ADVICE in message) is not on_path
    assert len(message.splitlines()) <= 4


def test_a_module_may_import_torchvision(tmp_path: Path) -> None:
    """In a new process, in which nothing has imported it before."""
    module = "import torchvision\n" + blocks(PAGE, "python")[0]
    (tmp_path / "vision_backbone.py").write_text(module)
    code = (
        "from consumers.backbones import declared\n"
        "from consumers.backbones.config import BackboneConfig\n"
        "own = BackboneConfig(adapter='vision_backbone:load')\n"
        "print(declared.load('mine', own, 'cpu', 'float32').dim)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("12\n", 0), done.stderr


def shared(self: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Stores its batch size in an attribute that another thread overwrites."""
    self.kept = len(pixels)
    time.sleep(0.01)
    found: torch.Tensor = pixels.flatten(1)[:, :12].float() + self.kept
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed": shared}, "other features where two threads embed at once"),
        ({"embed": lambda self, x: torch.rand(len(x), 12)}, "other features the second time"),
        ({"embed": lambda self, x: torch.zeros(len(x), 11)}, r"gives \[2, 11\] for 2 rows"),
        ({"embed": lambda self, x: torch.full((len(x), 12), float("nan"))}, "not finite in 2 of 2"),
        ({"embed": lambda self, x: torch.zeros(len(x), 12).double()}, "instead of a float32"),
        ({"fingerprint": ""}, "whose fingerprint is ''"),
        ({"image": None}, "not one of image"),
    ],
)
def test_what_is_no_backbone_is_refused_before_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "faulty_backbone.py").write_text(blocks(PAGE, "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "faulty_backbone", raising=False)
    faulty_backbone = importlib.import_module("faulty_backbone")
    for name, value in change.items():
        monkeypatch.setattr(faulty_backbone.Colours, name, value)
    with pytest.raises(ConfigError, match=message):
        declared.load("c", BackboneConfig(adapter="faulty_backbone:load"), "cpu", "float32")
