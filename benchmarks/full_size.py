"""Checkpoints of the paper's backbones at full size, with random weights and no download.

Only the loaded parts of BLIP-2 are written: the image or the text part, without the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.system.torchvision_ops import ensure_importable
from manyviews.operations.demo.checkpoints import unigram_tokenizer

ensure_importable()
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    Blip2Config,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DistilBertConfig,
    DistilBertModel,
    T5Config,
    T5EncoderModel,
)

VIEWS = 70
SAMPLES_OF_MMIMDB = 25_959
# Tokens of synopses: a log-normal whose median is 140 tokens and whose 95th percentile is 370.
_TOKENS_LOG_MEAN, _TOKENS_LOG_STD = np.log(140), 0.59


def draw_lengths(rng: np.random.Generator, rows: int, limit: int) -> npt.NDArray[np.int32]:
    """Tokens of texts that are like MM-IMDb's, int32 ``[rows]``, cut to ``limit``."""
    drawn = rng.lognormal(_TOKENS_LOG_MEAN, _TOKENS_LOG_STD, rows)
    return drawn.clip(2, limit).astype(np.int32)


def make_full_size(feature: str, folder: Path, device: torch.device) -> Path:
    """Writes a checkpoint for ``feature``; weights are drawn on ``device``."""
    makers: dict[str, Callable[[Path, torch.device], None]] = {
        "clip_image": _clip_image,
        "clip_text": _clip_text,
        "blip2_image": _blip2_image,
        "blip2_text": _blip2_text,
    }
    target = folder / feature
    target.mkdir()
    makers[feature](target, device)
    return target


def _clip_image(folder: Path, device: torch.device) -> None:
    """CLIP ViT-B/32: the configuration's defaults."""
    with device:
        model = CLIPVisionModelWithProjection(CLIPVisionConfig())
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def _clip_text(folder: Path, device: torch.device) -> None:
    """DistilBERT with a dense layer from 768 to 512, as clip-ViT-B-32-multilingual-v1.

    The vocabulary is small, which changes the memory for embeddings and no FLOP.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    base = folder / "base"
    with device:
        DistilBertModel(DistilBertConfig()).save_pretrained(base)
    unigram_tokenizer().save_pretrained(base)
    transformer = modules.Transformer(str(base), max_seq_length=128)
    pooling = modules.Pooling(768, pooling_mode="mean")
    dense = modules.Dense(768, 512, bias=False, activation_function=torch.nn.Identity())
    SentenceTransformer(modules=[transformer, pooling, dense], device="cpu").save(str(folder))


def _blip2_config() -> Blip2Config:
    """BLIP-2 with ViT-g, the Q-Former and flan-t5-xl; the first two have transformers' sizes."""
    text = T5Config(
        vocab_size=32128,
        d_model=2048,
        d_kv=64,
        d_ff=5120,
        num_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    # The default, 1e-10, would give every image the same features.
    vision = Blip2VisionConfig(initializer_range=0.02)
    return Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=Blip2QFormerConfig().to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=32,
    )


def _blip2_image(folder: Path, device: torch.device) -> None:
    config = _blip2_config()
    with device:
        parts = {
            "vision_model.": Blip2VisionModel(config.vision_config),
            "qformer.": Blip2QFormerModel(config.qformer_config),
        }
        queries = torch.randn(1, config.num_query_tokens, config.qformer_config.hidden_size)
    _save_blip2(folder, config, parts, {"query_tokens": queries})


def _blip2_text(folder: Path, device: torch.device) -> None:
    config = _blip2_config()
    with device:
        encoder = T5EncoderModel(config.text_config)
    _save_blip2(folder, config, {"language_model.": encoder}, {})


def _save_blip2(
    folder: Path, config: Blip2Config, parts: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    for prefix, part in parts.items():
        # Parameters, not the state: what is tied is named once.
        weights |= {prefix + name: weight.data for name, weight in part.named_parameters()}
    halves = {name: w.to(torch.bfloat16).cpu().contiguous() for name, w in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 224, "width": 224})
    Blip2Processor(images, unigram_tokenizer(), num_query_tokens=32).save_pretrained(folder)
