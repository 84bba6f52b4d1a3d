"""Token ids against transformers' own tokenizer call, on tokenizers trained here."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts import tokens as encoding
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.neighbours import neighbour_texts
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.recipes.texts.views import HiddenWords
from producers.recipes.texts.word_ids import WordIds
from tests.producers.views import text_views

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
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return {"wordpiece": wordpiece, "unigram": unigram}[request.param]()


def encode(spec: TextSpec, texts: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    ids = np.full((len(texts), spec.max_length), -7, np.int32)
    lengths = np.full(len(texts), -7, np.int32)
    cut = TokenEncoder(spec).encode(texts, ids, lengths)
    return ids, lengths, cut


def reference(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    ensure_importable()
    from transformers import PreTrainedTokenizerFast

    pad = tokenizer.id_to_token(0)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad)
    ids: list[list[int]] = wrapped(texts, truncation=True, max_length=max_length)["input_ids"]
    return ids


@pytest.mark.parametrize("max_length", [3, 16, 128])
def test_ids_equal_transformers(tokenizer: Tokenizer, max_length: int) -> None:
    texts = TEXTS + text_views(" ".join(CORPUS), 123, 3, 70).texts()
    expected = reference(tokenizer, texts, max_length)
    untruncated = [len(tokens) for tokens in reference(tokenizer, texts, 100_000)]
    ids, lengths, cut = encode(TextSpec(tokenizer.to_str(), max_length), texts)
    assert lengths.tolist() == [len(tokens) for tokens in expected]
    for row, tokens in zip(ids, expected, strict=True):
        assert row.tolist() == tokens + [0] * (max_length - len(tokens))
    assert cut == sum(count > max_length for count in untruncated) > 0


def test_a_text_of_exactly_max_length_is_not_cut(tokenizer: Tokenizer) -> None:
    [tokens] = reference(tokenizer, ["the castle"], 100)
    _, lengths, cut = encode(TextSpec(tokenizer.to_str(), len(tokens)), ["the castle"])
    assert (lengths.tolist(), cut) == ([len(tokens)], 0)
    _, lengths, cut = encode(TextSpec(tokenizer.to_str(), len(tokens) - 1), ["the castle"])
    assert (lengths.tolist(), cut) == ([len(tokens) - 1], 1)


def test_settings_saved_in_the_file_are_overruled(tokenizer: Tokenizer) -> None:
    plain: Sequence[np.ndarray | int] = encode(TextSpec(tokenizer.to_str(), 32), TEXTS)
    saved = Tokenizer.from_str(tokenizer.to_str())
    saved.enable_truncation(4, direction="left")
    saved.enable_padding(length=64)
    overruled: Sequence[np.ndarray | int] = encode(TextSpec(saved.to_str(), 32), TEXTS)
    for ours, expected in zip(overruled, plain, strict=True):
        assert np.array_equal(ours, expected)


def test_pad_id_fills_the_rest(tokenizer: Tokenizer) -> None:
    ids, lengths, _ = encode(TextSpec(tokenizer.to_str(), 32, pad_id=9), ["the castle"])
    assert (ids[0, lengths[0] :] == 9).all()
    assert lengths[0] < 32


def test_strip_and_lower_are_applied_before_the_tokenizer() -> None:
    tokenizer = unigram()
    spec = TextSpec(tokenizer.to_str(), 64, strip=True, lower=True)
    [expected] = reference(tokenizer, ["the castle"], 64)
    ids, lengths, _ = encode(spec, ["\n The CASTLE  "])
    assert ids[0, : lengths[0]].tolist() == expected
    other, _, _ = encode(TextSpec(tokenizer.to_str(), 64), ["\n The CASTLE  "])
    assert not np.array_equal(ids, other)


def test_wrong_arrays_are_refused() -> None:
    spec = TextSpec(wordpiece().to_str(), 8)
    encoder = TokenEncoder(spec)
    good_ids, good_lengths = np.zeros((2, 8), np.int32), np.zeros(2, np.int32)
    wrong: list[tuple[np.ndarray, np.ndarray]] = [
        (np.zeros((2, 9), np.int32), good_lengths),
        (np.zeros((1, 8), np.int32), good_lengths),
        (np.zeros((2, 8), np.int64), good_lengths),
        (good_ids, np.zeros((2, 1), np.int32)),
    ]
    for ids, lengths in wrong:
        with pytest.raises(ValueError, match="must be int32"):
            encoder.encode(["a", "b"], ids, lengths)
        with pytest.raises(ValueError, match="must be int32"):
            encoder.encode_views(text_views("a b", 1, 0, 2), ids, lengths)


def test_max_length_is_checked() -> None:
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        TextSpec("{}", 0)


def byte_level() -> Tokenizer:
    """Like GPT-2 and RoBERTa: a space is part of the following word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


def mask_that_takes_the_space() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    return tokenizer


def end_of_word() -> Tokenizer:
    """Like CLIP's tokenizer: lower case, split by a pattern, words end with a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words_run_together() -> Tokenizer:
    """White space is dropped first, so that pieces reach from one word into the next."""
    tokenizer = unigram()
    tokenizer.normalizer = normalizers.Replace(" ", "")
    return tokenizer


def text_is_bounded() -> Tokenizer:
    """Each text gets a mark, and so would each word that is encoded alone."""
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.Prepend("the")
    return tokenizer


Comparison = Callable[..., None]
TOKENIZERS: dict[str, tuple[Callable[[], Tokenizer], bool]] = {
    "wordpiece": (wordpiece, True),
    "unigram": (unigram, True),
    "byte level": (byte_level, True),
    "mask that takes the space": (mask_that_takes_the_space, True),
    "end of word": (end_of_word, True),
    "words run together": (words_run_together, False),
    "text is bounded": (text_is_bounded, False),
}


OWN_MASK = "</s>"
RECIPES: list[TextRecipe] = [
    Mask(),
    Mask(0.4, "the"),
    Mask(1.0, "#_ x"),
    Mask(token="model"),
    Drop(),
    Drop(0.5),
    Drop(1.0),
]


def hidden_words(text: str, views: int, recipe: TextRecipe) -> HiddenWords:
    """Views of a text by a recipe that hides words."""
    drawn = text_views(text, 123, 5, views, recipe=recipe)
    assert isinstance(drawn, HiddenWords)
    return drawn.for_tokenizer(OWN_MASK)


@pytest.fixture(autouse=True)
def always_by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins words even if that is slower."""
    monkeypatch.setattr(encoding, "_LEAST_GAIN", 0)


@pytest.fixture(scope="module", params=TOKENIZERS)
def both_ways(request: pytest.FixtureRequest) -> Comparison:
    """Encodes views in both ways and compares them."""
    make, by_words = TOKENIZERS[request.param]
    file = make().to_str()
    encoders: dict[tuple[int, bool], TokenEncoder] = {}

    def compare(
        text: str, max_length: int, lower: bool = False, recipes: Sequence[TextRecipe] = RECIPES
    ) -> None:
        key = max_length, lower
        if key not in encoders:
            spec = TextSpec(file, max_length, strip=lower, lower=lower, mask_token=OWN_MASK)
            encoders[key] = TokenEncoder(spec)
        encoder = encoders[key]
        assert encoder.by_words == by_words
        for recipe in recipes:
            require_equal(encoder, text, recipe)

    return compare


def require_equal(encoder: TokenEncoder, text: str, recipe: TextRecipe) -> None:
    """Encodes views as producers do, and their texts one by one."""
    views = text_views(text, 123, 5, 9, recipe=recipe)
    shape = 9, encoder.spec.max_length
    found, expected = ((np.full(shape, -7, np.int32), np.full(9, -7, np.int32)) for _ in range(2))
    cut = encoder.encode_views(views, *found)
    assert cut == encoder.encode(hidden_words(text, 9, recipe).texts(), *expected)
    assert np.array_equal(found[1], expected[1])
    assert np.array_equal(found[0], expected[0])


@pytest.mark.parametrize("max_length", [8, 64])
@pytest.mark.parametrize(
    "text", [*TEXTS, "The castle, the\u00a0STONE", "ΟΔΟΣ ΟΔΟΣ a\u0301 \u0301b"]
)
def test_views_are_encoded_as_their_texts_are(
    both_ways: Comparison, text: str, max_length: int
) -> None:
    both_ways(text, max_length)
    both_ways(text, max_length, lower=True)


# Marks that join what is before them, spaces of all kinds, pieces of the special tokens.
_HARD = "the castle[MASK]<pad>/s>#_▁Ġ'’-. \u0301\u0308\u200d\ufeff\u00ad\u2028\u3000\t\x1f\x00ﬁﷺΣς"
_CHARACTERS = st.sampled_from(_HARD) | st.characters(codec="utf-8")


@settings(deadline=None, max_examples=120)
@given(
    st.lists(
        st.text(st.sampled_from(_HARD) | st.characters(codec="utf-8"), max_size=9), max_size=9
    ),
    st.sampled_from([4, 12, 64]),
    st.booleans(),
    st.sampled_from(RECIPES),
)
def test_any_text_is_encoded_as_it_would_be_alone(
    both_ways: Comparison, words: list[str], max_length: int, lower: bool, recipe: TextRecipe
) -> None:
    both_ways(" ".join(words), max_length, lower, [recipe])


def pieces(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    return lambda texts: [
        e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]


@pytest.mark.parametrize("name", [name for name, (_, by_words) in TOKENIZERS.items() if by_words])
def test_ordinary_texts_are_joined_from_words(name: str) -> None:
    make, _ = TOKENIZERS[name]
    for text in [*CORPUS, "one", "x" * 500, "It's 1984 -- [MASK] isn't?"]:
        for recipe in RECIPES:
            views = hidden_words(text, 30, recipe)
            texts = neighbour_texts(views)
            assert WordIds(views.words, views.token, texts, pieces(make())).hold


def test_a_text_that_the_check_at_start_could_not_foresee_is_told_apart() -> None:
    """Only words that begin with k depend on the space before them."""
    tokenizer = unigram()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" k", "z")])
    encoder = TokenEncoder(TextSpec(tokenizer.to_str(), 64))
    assert encoder.by_words
    for recipe in (Mask(), Drop()):
        views = hidden_words("the castle of the king and his men", 30, recipe)
        assert not WordIds(views.words, views.token, neighbour_texts(views), pieces(tokenizer)).hold
        require_equal(encoder, views.text, recipe)


def test_a_token_of_two_words_is_found_where_others_are_left_out_between_them() -> None:
    """Only some of the views have it, and neither the text nor a text with masks."""
    tokenizer = wordpiece()
    tokenizer.add_tokens(["two men"])
    encoder = TokenEncoder(TextSpec(tokenizer.to_str(), 64))
    text = "the two old men meet in the prison and plan to leave it"
    seen = False
    for share in (0.1, 0.15, 0.3):
        recipe = Drop(share)
        views = hidden_words(text, 9, recipe)
        has_it = any("two men" in view for view in views.texts())
        seen |= has_it
        texts = neighbour_texts(views)
        assert WordIds(views.words, None, texts, pieces(tokenizer)).hold is not has_it
        require_equal(encoder, text, recipe)
    assert seen


@pytest.mark.parametrize("pattern", ["^c", "^the", "n$", "e$"])
def test_what_only_the_first_or_the_last_word_of_a_view_undergoes_is_found(pattern: str) -> None:
    tokenizer = unigram()
    tokenizer.normalizer = normalizers.Replace(Regex(pattern), "z")
    encoder = TokenEncoder(TextSpec(tokenizer.to_str(), 64))
    for text in (*CORPUS, "castle the king men", "men the castle"):
        for recipe in RECIPES[4:]:
            require_equal(encoder, text, recipe)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_the_texts_to_check_have_every_pair_of_neighbours(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 30))
    hide = st.lists(st.integers(0, count - 1), max_size=count - 1, unique=True)
    hidden = data.draw(st.lists(hide, min_size=1, max_size=9))
    views = HiddenWords("", [f"{i}" for i in range(count)], hidden, None, has_clean=False)
    texts = [text.tolist() for text in neighbour_texts(views)]
    pairs = {pair for text in texts for pair in itertools.pairwise(text)}
    for view in views.texts():
        words = [int(word) for word in view.split()]
        assert words
        assert pairs >= set(itertools.pairwise(words))
        assert words[:2] in texts
        assert words[-2:] in texts


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    encoder = TokenEncoder(TextSpec(wordpiece().to_str(), 8))
    views = text_views("a stone", 1, 1, 2, recipe=Mask(token="model"))
    with pytest.raises(ValueError, match="has none"):
        encoder.encode_views(views, np.zeros((2, 8), np.int32), np.zeros(2, np.int32))


def test_joining_words_is_chosen_if_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    encoder = TokenEncoder(TextSpec(wordpiece().to_str(), 64))
    views = {count: hidden_words(" ".join(CORPUS * 3), count, Drop()) for count in (2, 70)}
    assert encoder._word_ids(views[2]) is None
    assert encoder._word_ids(views[70]) is not None


def test_a_row_too_short_for_the_special_ids_is_left_to_the_tokenizer() -> None:
    encoder = TokenEncoder(TextSpec(wordpiece().to_str(), 2))
    assert not encoder.by_words
