"""Tiny checkpoints of the libraries of custom backbones, each saved by its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from featurestore.system.torchvision_ops import ensure_importable
from manyviews.operations.demo.checkpoints import _spread, _wordpiece

SIDE = 32


def make_library_models(folders: dict[str, Path], sentence: Path) -> None:
    """Creates a checkpoint for each adapter in a folder; ``sentence`` is linked."""
    ensure_importable()
    makers = {
        "transformers-image": _make_dinov2,
        "transformers-text": _make_bert,
        "timm": _make_timm,
        "open-clip-image": _make_open_clip,
    }
    with torch.random.fork_rng(devices=[]):
        for seed, (adapter, make) in enumerate(makers.items()):
            torch.manual_seed(seed)
            folders[adapter].mkdir(parents=True)
            make(folders[adapter])
    folders["sentence-transformers"].parent.mkdir(parents=True, exist_ok=True)
    folders["sentence-transformers"].symlink_to(sentence)


def _make_dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=16
    )
    model = Dinov2Model(config)
    _spread(model)
    model.save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    BitImageProcessor(size={"shortest_edge": 40}, crop_size=crop).save_pretrained(folder)


def _make_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    tokenizer = _wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    model = BertModel(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_timm(folder: Path) -> None:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", pretrained=False)
    _spread(model)
    save_for_hf(model, folder, safe_serialization=True)


def _make_open_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    tokenizer = _wordpiece()
    vision = {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text: dict[str, Any]
    text = {"context_length": 32, "vocab_size": len(tokenizer), "width": 32, "heads": 2}
    text |= {"layers": 1, "hf_tokenizer_name": "in-this-folder"}
    preprocess = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27]}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    tokenizer.save_pretrained(folder)
    model = open_clip.CLIP(16, vision, {k: v for k, v in text.items() if k[:2] != "hf"})
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def make_clip_tokenizer(folder: Path) -> None:
    """Gives an open_clip checkpoint CLIP's own vocabulary, as on the hub, without a tokenizer name.

    open_clip then uses its own code and vocabulary; beside it lies the same as ``tokenizer.json``.
    """
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer
    from safetensors.torch import save_file
    from transformers import CLIPTokenizerFast

    simple = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in simple.encoder.items()}
    merges = list(simple.bpe_ranks)
    for path in folder.glob("*token*"):
        path.unlink()
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    config = document["model_cfg"]
    del config["text_cfg"]["hf_tokenizer_name"]
    config["text_cfg"]["vocab_size"] = len(vocabulary)
    path.write_text(json.dumps(document))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
