"""Whatever a library raises while it loads a model becomes an error that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers import backbones, declared
from consumers.backbone_config import BackboneConfig
from consumers.backbones import quiet_transformers
from featurestore.errors import ConfigError
from featurestore.torchvision_ops import ensure_importable


def refused(adapter: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        declared.load("f", BackboneConfig(adapter=adapter, model=str(folder)), "cpu", "float32")
    message = str(error.value)
    assert message.count("\n") <= 3
    assert folder.name in message
    return message


@pytest.mark.parametrize("config", [{"tokenizer_class": "SiglipTokenizer"}, {}])
def test_siglip_without_sentencepiece(tmp_path: Path, config: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("sentencepiece is installed")
    ensure_importable()
    quiet_transformers()
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64}
    texts = sizes | {"vocab_size": 64, "max_position_embeddings": 64}
    images = sizes | {"image_size": 32, "patch_size": 16}
    folder = tmp_path / "siglip"
    SiglipModel(SiglipConfig(text_config=texts, vision_config=images)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, **config}))
    (folder / "spiece.model").write_bytes(b"\x0a\x08abc")
    message = refused("transformers-text", folder)
    assert "siglip cannot be loaded by transformers, which needs sentencepiece for it" in message
    assert "pip install sentencepiece" in message


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
        backbones.load("clip_image", str(folder), "cpu", "float32")


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
        (_static, "the module StaticEmbedding, which is unsupported: it gives nothing for the em"),
        (_bow, "the module BoW, which is unsupported: it counts words"),
        (_router, "the module Router, which is unsupported: it embeds queries and documents diff"),
    ],
)
def test_modules_that_are_not_supported(
    checkpoints: dict[str, str], tmp_path: Path, make: Any, message: str
) -> None:
    """Each as the library saves and loads it."""
    ensure_importable()
    from sentence_transformers import SentenceTransformer

    sentence = Path(checkpoints["clip_text"])
    torch.manual_seed(0)
    model = SentenceTransformer(modules=make(sentence), device="cpu")
    model.save(str(tmp_path / "model"))
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["love"]).shape[0] == 1
    assert message in refused("sentence-transformers", tmp_path / "model")
