"""Notices about slow code paths, one for each."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from consumers.notices import slow_paths
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts.tokens import TextSpec
from producers.worker import Job


def spec(*, by_words: bool) -> TextSpec:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not by_words:
        tokenizer.normalizer = normalizers.Prepend("b ")
    return TextSpec(tokenizer.to_str(), 16)


def job(*, images: int, compiled: bool) -> Job:
    return Job(
        {"kind": "pairs", "root": "data"}, 4, 123, (ImageSpec(224, 224),) * images, (), 2, compiled
    )


def test_fast_ways_need_no_words() -> None:
    assert slow_paths(job(images=1, compiled=True), {"clip_text": spec(by_words=True)}) == []
    assert slow_paths(job(images=0, compiled=False), {}) == []


def test_every_slow_way_is_named() -> None:
    texts = {"clip_text": spec(by_words=True), "blip2_text": spec(by_words=False)}
    kernels, tokenizer = slow_paths(job(images=1, compiled=False), texts)
    assert "no compiled kernels" in kernels
    assert "blip2_text: the tokenizer" in tokenizer
