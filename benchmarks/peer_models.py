"""The tiny checkpoints that all jobs load; the image tower once more in open_clip's form."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from manyviews.operations.demo.checkpoints import make_checkpoints

_WIDTH, _LAYERS, _HEADS, _TEXT_WIDTH, _VOCABULARY, _CONTEXT = 64, 2, 4, 32, 49_408, 77
_DIM = 32


def make_models(folder: Path) -> None:
    """Writes ``clip``, ``sentence`` and ``open_clip`` to ``folder``."""
    clip = make_checkpoints(folder)["clip"]
    target = folder / "open_clip"
    target.mkdir()
    (target / "tiny.json").write_text(json.dumps(_CONFIG), "utf-8")
    torch.save(_image_tower(clip) | _text_tower(), target / "tiny.pt")


_CONFIG = {
    "embed_dim": _DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 224,
        "layers": _LAYERS,
        "width": _WIDTH,
        "patch_size": 32,
        "head_width": _WIDTH // _HEADS,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {
        "context_length": _CONTEXT,
        "vocab_size": _VOCABULARY,
        "width": _TEXT_WIDTH,
        "heads": _HEADS,
        "layers": 1,
    },
}


def _image_tower(clip: Path) -> dict[str, torch.Tensor]:
    """The same weights under open_clip's names."""
    from transformers import CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(clip)
    theirs = dict(network.named_parameters())
    made = {
        "visual.proj": theirs.pop("visual_projection.weight").T,
    }
    tower = {name.removeprefix("vision_model."): value for name, value in theirs.items()}
    names = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
    }
    layers = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for n in range(_LAYERS):
        ours, other = f"transformer.resblocks.{n}", f"encoder.layers.{n}"
        layers |= {
            f"{other}.layer_norm1": f"{ours}.ln_1",
            f"{other}.layer_norm2": f"{ours}.ln_2",
            f"{other}.mlp.fc1": f"{ours}.mlp.c_fc",
            f"{other}.mlp.fc2": f"{ours}.mlp.c_proj",
            f"{other}.self_attn.out_proj": f"{ours}.attn.out_proj",
        }
        for kind in ("weight", "bias"):
            parts = [tower[f"{other}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            made[f"visual.{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    for other, ours in layers.items():
        names |= {f"{other}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    made |= {f"visual.{name}": tower[other] for other, name in names.items()}
    return {name: value.detach().clone().contiguous() for name, value in made.items()}


def _text_tower() -> dict[str, torch.Tensor]:
    """Weights that nothing depends on: the command embeds a text when it loads a model."""
    width, block = _TEXT_WIDTH, "transformer.resblocks.0."
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (_CONTEXT, width),
        "text_projection": (width, _DIM),
        "token_embedding.weight": (_VOCABULARY, width),
        block + "attn.in_proj_weight": (3 * width, width),
        block + "attn.in_proj_bias": (3 * width,),
        block + "attn.out_proj.weight": (width, width),
        block + "attn.out_proj.bias": (width,),
        block + "mlp.c_fc.weight": (4 * width, width),
        block + "mlp.c_fc.bias": (4 * width,),
        block + "mlp.c_proj.weight": (width, 4 * width),
        block + "mlp.c_proj.bias": (width,),
    }
    for norm in (block + "ln_1", block + "ln_2", "ln_final"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {name: torch.full(shape, 0.02) for name, shape in shapes.items()}
