"""Every error of a library that loads a model becomes an error with advice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.backbones.registry import quiet_transformers
from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from tests import warm
from tests.conftest import ROOT


def refused(adapter: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        declared.load("f", BackboneConfig(adapter=adapter, model=str(folder)), "cpu", "float32")
    message = str(error.value)
    assert message.count("\n") <= 3
    assert folder.name in message
    return message


# A machine where sentencepiece is not installed, whether or not it is installed on this one.
_WITHOUT = """
import sys
sys.modules["sentencepiece"] = None
from manyviews import main
main.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP checkpoint of the real class whose tokenizer is ``spiece.model`` alone."""
    ensure_importable()
    quiet_transformers()
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64}
    texts = sizes | {"vocab_size": 64, "max_position_embeddings": 64}
    images = sizes | {"image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("models") / "siglip"
    SiglipModel(SiglipConfig(text_config=texts, vision_config=images)).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(b"\x0a\x08abc")
    return folder


@pytest.mark.parametrize("config", [{"tokenizer_class": "SiglipTokenizer"}, {}])
def test_siglip_without_sentencepiece(
    siglip: Path, checkpoints: dict[str, str], tmp_path: Path, config: dict[str, Any]
) -> None:
    """``build`` exits with 2, and ``check`` still checks other models, data and machine."""
    folder = Path(shutil.copytree(siglip, tmp_path / "siglip"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, **config}))
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "a.jpg")
    (data / "a.json").write_text('{"plot": "a robot learns to laugh", "genres": ["Drama"]}')
    toml, other = tmp_path / "build.toml", checkpoints["clip_text"]
    toml.write_text(
        f'[backbones.title]\nadapter = "transformers-text"\nmodel = "{folder}"\n'
        f'[backbones.other]\nadapter = "sentence-transformers"\nmodel = "{other}"\n'
    )
    common = ["--data-dir", data, "--config", toml, "--features", "title,other", "--views", 2]
    common += ["--device", "cpu", "--producers", 1, "--store", tmp_path / "store"]

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _WITHOUT, *map(str, arguments)]
        # Where sentencepiece is installed, a process that has imported transformers knows that.
        start = warm.run if find_spec("sentencepiece") is None else subprocess.run
        return start(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    built = run("build", *common)
    assert built.returncode == 2, built.stderr
    error = built.stderr[built.stderr.index("Error: ") :]
    assert "siglip cannot be loaded by transformers, which needs sentencepiece for it" in error
    assert "pip install sentencepiece" in error
    assert error.count("\n") <= 4
    assert not (tmp_path / "store").exists()
    checked = run("check", *common, "--json")
    assert checked.returncode == 1, checked.stderr
    found = json.loads(checked.stdout)
    [problem] = [p for p in found["problems"] if p["level"] == "error"]
    assert "siglip cannot be loaded by transformers, which needs sentencepiece" in problem["what"]
    assert "pip install sentencepiece" in problem["advice"]
    assert {"data", "models", "machine", "forecast", "posters", "synopses"} <= found.keys()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("FlashAttention2 has been toggled on, but it is not installed"),
        ModuleNotFoundError("No module named 'einops'", name="einops"),
        ZeroDivisionError("integer division or modulo by zero"),
        NotImplementedError(),
        AssertionError(),
        PermissionError(13, "Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("adapter", "function", "library"),
    [
        ("transformers-text", "transformers.AutoTokenizer.from_pretrained", "transformers"),
        ("transformers-text", "transformers.AutoModel.from_pretrained", "transformers"),
        ("sentence-transformers", "sentence_transformers.SentenceTransformer.__init__", "sentence"),
        ("transformers-text", "transformers.DistilBertModel.forward", "transformers"),
    ],
)
def test_any_error_of_a_library(
    checkpoints: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    function: str,
    library: str,
    error: Exception,
) -> None:
    ensure_importable()
    import sentence_transformers  # noqa: F401

    def raising(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(function, raising)
    message = refused(adapter, Path(checkpoints["clip_text"]))
    assert library in message
    if isinstance(error, ModuleNotFoundError):
        assert "pip install einops" in message


def test_a_file_that_may_not_be_read(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(checkpoints["clip_image"], tmp_path / "clip"))
    original = Path.open

    def guarded(self: Path, *args: Any, **keywords: Any) -> Any:
        if self.name == "model.safetensors":
            raise PermissionError(13, "Permission denied")
        return original(self, *args, **keywords)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(ConfigError, match=r"(?s)model.safetensors: Permission.*Make it readable"):
        registry.load("clip_image", str(folder), "cpu", "float32")


# --- modules of sentence-transformers ---


def _wordpieces(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _static(folder: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer import modules

    return [modules.StaticEmbedding(_wordpieces(folder), embedding_dim=8)]


def _bow(_: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer import modules

    return [modules.BoW(vocab=["love", "war"])]


def _router(folder: Path) -> list[Any]:
    from sentence_transformers.base.modules import Router

    parts = {"query": _static(folder), "document": _static(folder)}
    return [Router(parts, default_route="document")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_static, "the module StaticEmbedding, which is unsupported: it has no tokens for the em"),
        (_bow, "the module BoW, which is unsupported: it counts words"),
        (_router, "the module Router, which is unsupported: it embeds queries and documents diff"),
    ],
)
def test_modules_that_are_not_supported(
    checkpoints: dict[str, str], tmp_path: Path, make: Any, message: str
) -> None:
    """Each format, as the library saves and loads it."""
    ensure_importable()
    from sentence_transformers import SentenceTransformer

    sentence = Path(checkpoints["clip_text"])
    torch.manual_seed(0)
    model = SentenceTransformer(modules=make(sentence), device="cpu")
    model.save(str(tmp_path / "model"))
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["love"]).shape[0] == 1
    assert message in refused("sentence-transformers", tmp_path / "model")
