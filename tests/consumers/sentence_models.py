"""Tiny sentence-transformers checkpoints of encoders that differ in attention and padding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing

from featurestore.system.torchvision_ops import ensure_importable
from manyviews.operations.demo.checkpoints import _spread, _wordpiece, unigram_tokenizer

LIMIT = 160
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = _LAYERS | {"intermediate_size": 64, "max_position_embeddings": 1024}


def make_sentence_model(
    kind: str, folder: Path, *, pooling: str = "mean", limit: int = LIMIT, side: str = ""
) -> None:
    """Saves a sentence-transformers model of a real class of transformers.

    Args:
        kind: one of ``KINDS``.
        folder: where to.
        pooling: as sentence-transformers names it.
        limit: the most tokens of a text.
        side: the tokenizer's padding side, if it is not the kind's own.
    """
    ensure_importable()
    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

    with TemporaryDirectory() as base, torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(kind.encode()))
        tokenizer, model = KINDS[kind]()
        if side:
            tokenizer.padding_side = side
        _spread(model)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        _keep_side(Path(base), tokenizer.padding_side)
        transformer = modules.Transformer(base, max_seq_length=limit)
        parts = [transformer, modules.Pooling(model.config.hidden_size, pooling_mode=pooling)]
        sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder))


def _keep_side(folder: Path, side: str) -> None:
    """Saves the padding side, which a tokenizer's own class has otherwise."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))


def _of(name: str, **settings: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        import transformers

        tokenizer = _wordpiece()
        config = getattr(transformers, f"{name}Config")(
            vocab_size=len(tokenizer), pad_token_id=0, **{**_SIZES, **settings}
        )
        return tokenizer, getattr(transformers, f"{name}Model")(config)

    return make


def _typed(tokenizer: Any) -> Any:
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def _deberta() -> tuple[Any, Any]:
    from transformers import DebertaV2Config, DebertaV2Model

    tokenizer = _typed(_wordpiece())
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        conv_kernel_size=3,
        **_SIZES,
    )
    return tokenizer, DebertaV2Model(config)


def _fnet() -> tuple[Any, Any]:
    from transformers import FNetConfig, FNetModel

    tokenizer = _wordpiece()
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    sizes = {k: v for k, v in _SIZES.items() if k != "num_attention_heads"}
    return tokenizer, FNetModel(FNetConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes))


def _xlnet() -> tuple[Any, Any]:
    """XLNet pads on the left, ends a text in ``<sep> <cls>``, and gives the last a type of 2."""
    from transformers import XLNetConfig, XLNetModel

    tokenizer = unigram_tokenizer()
    tokenizer.add_special_tokens({"sep_token": "<sep>", "cls_token": "<cls>"})
    sep, cls = tokenizer.convert_tokens_to_ids(["<sep>", "<cls>"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", sep), ("<cls>", cls)]
    )
    tokenizer.padding_side = "left"
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=64)
    return _typed(tokenizer), XLNetModel(config)


KINDS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "mpnet": _of("MPNet"),
    "deberta": _deberta,
    "xlnet": _xlnet,
    "longformer": _of("Longformer", attention_window=[16, 16]),
    "bigbird": _of("BigBird", block_size=4, num_random_blocks=1),
    "squeezebert": _of("SqueezeBert", embedding_size=32),
    "rembert": _of("RemBert", input_embedding_size=16, output_embedding_size=16),
    "convbert": _of("ConvBert", embedding_size=32, conv_kernel_size=5),
    "fnet": _fnet,
    "mistral": _of("Mistral", num_key_value_heads=2, sliding_window=None),
}
