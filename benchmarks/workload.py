"""What the engine is measured with: folders of any number of samples, weightless backbones."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from consumers.backbones import registry
from manyviews.operations.demo.data import make_demo_data
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts.tokens import TextSpec

SIZE = 224


class NullImage:
    """An image backbone that costs nothing but reading some of its pixels."""

    def __init__(self, feature: str, dim: int = 64) -> None:
        self.feature, self.model, self.fingerprint, self.dim = feature, "null", "0" * 64, dim
        self.image = ImageSpec(SIZE, SIZE)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """The first pixels as they are."""
        return pixels.flatten(1)[:, : self.dim].float()


class NullText:
    """A text backbone that costs nothing but reading its ids."""

    def __init__(self, feature: str, dim: int = 64) -> None:
        tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[END]": 2}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [END]", special_tokens=[("[END]", 2)]
        )
        self.feature, self.model, self.fingerprint, self.dim = feature, "null", "0" * 64, dim
        self.text = TextSpec(tokenizer.to_str(), 16)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def embed(self, _input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The number of tokens, in every dimension."""
        return attention_mask.sum(1, keepdim=True).float().expand(-1, self.dim).contiguous()


@contextmanager
def null_backbones(but: Container[str] = ()) -> Iterator[None]:
    """Builds load nothing inside this block, ``but`` for these features."""
    honest = registry.load

    def load(feature: str, model: str, device: str, dtype: str) -> Any:
        if feature in but:
            return honest(feature, model, device, dtype)
        null = NullImage if registry.info(feature).modality == "image" else NullText
        return null(feature)

    registry.load = load
    try:
        yield
    finally:
        registry.load = honest


def data_folder(folder: Path, samples: int) -> Path:
    """A folder of ``samples`` pairs, hard links to 48 drawn posters and their synopses."""
    if not (folder / "originals").exists():
        make_demo_data(folder / "originals")
    found = folder / f"data-{samples}"
    if found.exists():
        return found
    originals = folder / "originals/dataset"
    pairs = [(p, p.with_suffix(".json")) for p in sorted(originals.glob("*.jp*g"))[1:]]
    pairs = [pair for pair in pairs if pair[1].exists()]
    partial = folder / "partial"
    partial.mkdir()
    for i in range(samples):
        for file in pairs[i % len(pairs)]:
            os.link(file, partial / f"{i:07d}{file.suffix}")
    partial.rename(found)
    return found
