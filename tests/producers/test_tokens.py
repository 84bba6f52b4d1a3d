"""Token ids against transformers' own tokenizer call, on tokenizers trained here."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from featurestore.torchvision_ops import ensure_importable
from producers.text_views import views
from producers.tokens import TextSpec, TokenEncoder

CORPUS = [
    "a young wizard finds a stone in the castle",
    "two men meet in prison and plan to leave it",
    "the ship leaves the harbour, and nobody asks why",
    "she reads the letter; he plays Chopin until the morning",
]
TEXTS = [
    "",
    " ",
    "the",
    "  The CASTLE  ",
    "a young wizard meets two men",
    "unknown wörds ☃ 🧙‍♂️ zzz",
    " ".join(CORPUS * 5),
    "[MASK] in the [MASK] castle",
    "a\x00b\nc\td",
    "x" * 500,
]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["wordpiece", "unigram"])
def tokenizer(request) -> Tokenizer:
    return {"wordpiece": wordpiece, "unigram": unigram}[request.param]()


def encode(spec: TextSpec, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    ids = np.full((len(texts), spec.max_length), -7, np.int32)
    lengths = np.full(len(texts), -7, np.int32)
    cut = TokenEncoder(spec).encode_views(texts, ids, lengths)
    return ids, lengths, cut


def reference(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    ensure_importable()
    from transformers import PreTrainedTokenizerFast

    pad = tokenizer.id_to_token(0)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad)
    return wrapped(texts, truncation=True, max_length=max_length)["input_ids"]


@pytest.mark.parametrize("max_length", [3, 16, 128])
def test_ids_equal_transformers(tokenizer, max_length):
    texts = TEXTS + views(" ".join(CORPUS), 123, 3, 70)
    expected = reference(tokenizer, texts, max_length)
    untruncated = [len(tokens) for tokens in reference(tokenizer, texts, 100_000)]
    ids, lengths, cut = encode(TextSpec(tokenizer.to_str(), max_length), texts)
    assert lengths.tolist() == [len(tokens) for tokens in expected]
    for row, tokens in zip(ids, expected, strict=True):
        assert row.tolist() == tokens + [0] * (max_length - len(tokens))
    assert cut == sum(count > max_length for count in untruncated) > 0


def test_a_text_of_exactly_max_length_is_not_cut(tokenizer):
    [tokens] = reference(tokenizer, ["the castle"], 100)
    _, lengths, cut = encode(TextSpec(tokenizer.to_str(), len(tokens)), ["the castle"])
    assert (lengths.tolist(), cut) == ([len(tokens)], 0)
    _, lengths, cut = encode(TextSpec(tokenizer.to_str(), len(tokens) - 1), ["the castle"])
    assert (lengths.tolist(), cut) == ([len(tokens) - 1], 1)


def test_settings_saved_in_the_file_are_overruled(tokenizer):
    plain = encode(TextSpec(tokenizer.to_str(), 32), TEXTS)
    saved = Tokenizer.from_str(tokenizer.to_str())
    saved.enable_truncation(4, direction="left")
    saved.enable_padding(length=64)
    for ours, expected in zip(encode(TextSpec(saved.to_str(), 32), TEXTS), plain, strict=True):
        assert np.array_equal(ours, expected)


def test_pad_id_fills_the_rest(tokenizer):
    ids, lengths, _ = encode(TextSpec(tokenizer.to_str(), 32, pad_id=9), ["the castle"])
    assert (ids[0, lengths[0] :] == 9).all()
    assert lengths[0] < 32


def test_strip_and_lower_are_applied_before_the_tokenizer():
    tokenizer = unigram()
    spec = TextSpec(tokenizer.to_str(), 64, strip=True, lower=True)
    [expected] = reference(tokenizer, ["the castle"], 64)
    ids, lengths, _ = encode(spec, ["\n The CASTLE  "])
    assert ids[0, : lengths[0]].tolist() == expected
    other, _, _ = encode(TextSpec(tokenizer.to_str(), 64), ["\n The CASTLE  "])
    assert not np.array_equal(ids, other)


def test_wrong_arrays_are_refused():
    spec = TextSpec(wordpiece().to_str(), 8)
    encoder = TokenEncoder(spec)
    good_ids, good_lengths = np.zeros((2, 8), np.int32), np.zeros(2, np.int32)
    for ids, lengths in [
        (np.zeros((2, 9), np.int32), good_lengths),
        (np.zeros((1, 8), np.int32), good_lengths),
        (np.zeros((2, 8), np.int64), good_lengths),
        (good_ids, np.zeros((2, 1), np.int32)),
    ]:
        with pytest.raises(ValueError, match="must be int32"):
            encoder.encode_views(["a", "b"], ids, lengths)


def test_max_length_is_checked():
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        TextSpec("{}", 0)
