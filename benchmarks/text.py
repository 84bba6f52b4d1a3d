"""Encoding text views with hidden words: joined from words, compared with ``encode_batch_fast``.

Usage:
    python -m benchmarks.text [--quick]

Plots are runs of prose from Python's own documentation, on which the tokenizers are trained too.
CPU time, one thread, in turn. The ids are compared as well: they are equal.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import product
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from benchmarks import measuring
from benchmarks.measuring import Contender, timed
from featurestore.records import view_seeds
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.recipes.texts.views import HiddenWords

VIEWS = 70
VOCABULARY = 8000
RECIPES = (Mask(), Drop())
WHOLE, BY_WORDS, MASKING = "encode_batch_fast", "ours, by words", "masking alone"
LIBRARY_MASKING = "masking by random.shuffle"


def wordpiece(corpus: list[str]) -> TextSpec:
    """As the multilingual DistilBERT of ``clip_text``: at most 128 ids."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return TextSpec(tokenizer.to_str(), 128)


def unigram(corpus: list[str]) -> TextSpec:
    """As T5's: at most 512 ids."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return TextSpec(tokenizer.to_str(), 512)


def plots(corpus: list[str], words: int, count: int, recipe: TextRecipe) -> list[HiddenWords]:
    """Runs of this many words of the corpus, with their views."""
    everything = " ".join(corpus).split()
    starts = random.Random(0).sample(range(len(everything) - words), count)
    texts = (" ".join(everything[start : start + words]) for start in starts)
    return [drawn(recipe, text, index) for index, text in enumerate(texts)]


def drawn(recipe: TextRecipe, text: str, index: int) -> HiddenWords:
    """The views of a text."""
    others = range(1, VIEWS)
    views = recipe.draw(text, others, view_seeds(123, index, others, "text"), has_clean=True)
    assert isinstance(views, HiddenWords)
    return views


def encode_whole(encoder: TokenEncoder, samples: list[HiddenWords]) -> Callable[[], float]:
    """What a view costs where its text is encoded; the texts are there already."""
    texts = [sample.texts() for sample in samples]
    ids, lengths = arrays(encoder)

    def lap() -> float:
        for views in texts:
            encoder.encode(views, ids, lengths)
        return len(texts) * VIEWS

    return lap


def encode_by_words(encoder: TokenEncoder, samples: list[HiddenWords]) -> Callable[[], float]:
    """What it costs where it is put together, the check of every sample included."""
    ids, lengths = arrays(encoder)

    def lap() -> float:
        for sample in samples:
            encoder.encode_views(sample, ids, lengths)
        return len(samples) * VIEWS

    return lap


def mask(samples: list[HiddenWords]) -> Callable[[], float]:
    """Drawing which words each view hides."""

    def lap() -> float:
        for index, sample in enumerate(samples):
            drawn(RECIPES[0], sample.text, index)
        return len(samples) * VIEWS

    return lap


def mask_by_library(samples: list[HiddenWords]) -> Callable[[], float]:
    """The same draws by ``random.shuffle``."""

    def lap() -> float:
        for sample in samples:
            for seed in range(VIEWS):
                positions = list(range(len(sample.words)))
                random.Random(seed).shuffle(positions)
        return len(samples) * VIEWS

    return lap


def arrays(encoder: TokenEncoder) -> tuple[np.ndarray, np.ndarray]:
    """What a sample's ids and lengths are written to."""
    return np.zeros((VIEWS, encoder.spec.max_length), np.int32), np.zeros(VIEWS, np.int32)


def require_equal(encoder: TokenEncoder, samples: list[HiddenWords]) -> None:
    """Stops where both ways give other ids."""
    found, expected = arrays(encoder), arrays(encoder)
    for sample in samples:
        encoder.encode_views(sample, *found)
        encoder.encode(sample.texts(), *expected)
        if not all(map(np.array_equal, found, expected)):
            raise SystemExit("the ids differ")


def main() -> None:
    """Prints a table for each tokenizer and length of plots."""
    quick = measuring.options(__doc__).quick
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    count, rounds = (2, 3) if quick else (6, 11)
    corpus = list(topics.values())
    print(measuring.machine("tokenizers", "numpy"))
    for name, make in (("WordPiece, 128 ids", wordpiece), ("Unigram, 512 ids", unigram)):
        encoder = TokenEncoder(make(corpus))
        for recipe, words in product(RECIPES, (150, 700)):
            samples = plots(corpus, words, count, recipe)
            require_equal(encoder, samples)
            contenders: dict[str, Contender] = {
                WHOLE: timed(encode_whole(encoder, samples)),
                BY_WORDS: timed(encode_by_words(encoder, samples)),
                MASKING: timed(mask(samples)),
                LIBRARY_MASKING: timed(mask_by_library(samples)),
            }
            laps = measuring.take_turns(contenders, rounds)
            print(f"\n{name}, plots of {words} words, recipe {recipe.name}:\n")
            print(measuring.comparison(laps, WHOLE, "views"), flush=True)
            if words == 700:
                found = measuring.ratio(laps[BY_WORDS], laps[WHOLE])
                print()
                print(measuring.goal(f"{BY_WORDS} / {WHOLE}", found.median, 5.0))


if __name__ == "__main__":
    main()
