"""Tiny checkpoints of the real classes, for the demo and the tests; no download is needed.

Their weights are random, with a variance that gives different inputs clearly different features.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from consumers.backbones.registry import quiet_transformers
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()
from sentence_transformers import SentenceTransformer  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import (  # noqa: E402
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    T5Config,
)

IMAGE_SIZE = 224
_VOCABULARY = """
a an and as at but by for from he her him his in into is it no not of on or out she that
the their them they this to under up was when who with year years after before against
across love life death family father mother son daughter man woman boy girl friend war
army soldier battle police detective murder crime gang killer ghost haunted monster
alien space robot planet ship future king queen sword magic dragon kingdom quest
adventure treasure island journey wedding romance heart kiss marriage comedy laugh joke
school summer music band singer dance stage sport team coach game match race horse
cowboy sheriff west town city night dark secret history true story document real short
film animated cartoon animal child children drama tears lonely fear scream blood
thriller spy chase bomb escape mystery clue
"""


def make_checkpoints(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Writes one tiny checkpoint of each kind.

    Args:
        folder: parent of the folders ``clip``, ``sentence`` and ``blip2``, which are created.
        seed: seed of the weights; torch's global generator is not changed.

    Returns:
        The three folders by name.
    """
    quiet_transformers()
    writers = {"clip": _write_clip, "sentence": _write_sentence, "blip2": _write_blip2}
    with torch.random.fork_rng(devices=[]):
        for offset, (name, write) in enumerate(writers.items()):
            torch.manual_seed(seed * len(writers) + offset)
            (folder / name).mkdir(parents=True, exist_ok=True)
            write(folder / name)
    return {name: folder / name for name in writers}


def _write_clip(folder: Path) -> None:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    vision = {"hidden_size": 64, "image_size": IMAGE_SIZE, "patch_size": 32, "projection_dim": 32}
    text = {"hidden_size": 32, "vocab_size": 64, "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(vision_config=vision | layers, text_config=text | layers, projection_dim=32)
    model = CLIPModel(config)
    _spread(model)
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def _write_sentence(folder: Path) -> None:
    # The modules moved in sentence-transformers 5.x; later versions warn about the old path.
    try:
        from sentence_transformers.sentence_transformer import modules
    except ImportError:
        from sentence_transformers import models as modules

    tokenizer = _wordpiece()
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=64, n_layers=2, n_heads=4, hidden_dim=128
    )
    encoder = DistilBertModel(config)
    _spread(encoder)
    with TemporaryDirectory() as base:
        encoder.save_pretrained(base)
        tokenizer.save_pretrained(base)
        transformer = modules.Transformer(base, max_seq_length=128)
    pooling = modules.Pooling(64, pooling_mode="mean")
    dense = modules.Dense(64, 32, bias=False, activation_function=torch.nn.Identity())
    SentenceTransformer(modules=[transformer, pooling, dense], device="cpu").save(str(folder))


def _write_blip2(folder: Path) -> None:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    tokenizer = unigram_tokenizer()
    vision = Blip2VisionConfig(hidden_size=64, image_size=IMAGE_SIZE, patch_size=32, **layers)
    qformer = Blip2QFormerConfig(
        hidden_size=96, encoder_hidden_size=64, cross_attention_frequency=1, vocab_size=32, **layers
    )
    text = T5Config(
        vocab_size=len(tokenizer) + 1,  # the processor adds <image>
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    # transformers before 5 accepts the parts as dictionaries only.
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=8,
    )
    model = Blip2ForConditionalGeneration(config)
    # T5 keeps its own initial weights: its attention is not scaled, and would saturate.
    _spread(model.vision_model)
    _spread(model.qformer)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    Blip2Processor(images, tokenizer, num_query_tokens=8).save_pretrained(folder)


def _spread(model: torch.nn.Module) -> None:
    """Draws matrices with gain 1.5: with the usual 0.02 a narrow network's output is constant."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name.rpartition(".")[0].rpartition(".")[2]:
            torch.nn.init.normal_(weight, std=1.5 / math.sqrt(weight[0].numel()))
        elif weight.ndim > 1 and "patch" in name:
            torch.nn.init.normal_(weight, std=3 / math.sqrt(weight[0].numel()))
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)


def _wordpiece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    signs = [c for c in string.printable if not c.isspace()]
    vocabulary = _numbered([*special, *signs, *(f"##{c}" for c in signs), *_VOCABULARY.split()])
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _fast(tokenizer, dict(zip(names, special, strict=True)), 128)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of T5's kind with a small vocabulary: at most 512 ids, ``</s>`` at the end."""
    signs = [c for c in string.printable if not c.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(c, -6.0) for c in signs] + [
        (f"▁{word}", -5.0) for word in _unique(_VOCABULARY.split())
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _fast(tokenizer, names, 512)


def _fast(tokenizer: Tokenizer, special: dict[str, Any], limit: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=limit,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _numbered(words: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(_unique(words))}
