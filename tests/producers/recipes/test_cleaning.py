"""The cleaning against open_clip itself, and cleaned words against cleaned whole views."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts.cleaning import CLEANINGS, Clean, clean_words, cleaner
from producers.recipes.texts.neighbours import neighbour_texts
from producers.recipes.texts.views import MASK, HiddenWords

# What mojibake, entities, ligatures, widths and accents are made of, and what is removed.
_HARD = "aZÃ©¢Â¬œ€™“”’‘—–&amp;#39<>lt_-.ﬁＡ＆；ﾊﾞ\u0301\u0308éàİΣς"
_HARD += "\x00\x1b[m\u200b\ufeff\xad\xa0\x85\u2028 \n"
_TEXT = st.text(st.sampled_from(_HARD) | st.characters(codec="utf-8"), max_size=12)


def cleaned_words(
    words: list[str], clean: Clean, token: str | None, hidden: list[list[int]]
) -> list[str] | None:
    """The cleaned words of views that hide some of them."""
    texts = neighbour_texts(HiddenWords("", words, hidden, token))
    return clean_words(words, token, texts, clean)


@pytest.fixture(scope="module")
def librarys() -> Callable[[str], Callable[[str], str]]:
    ensure_importable()
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CLEANINGS)
@given(parts=st.lists(_TEXT, max_size=6))
@example(parts=["A spy’s “story”", "&amp;amp; &eacute;", "cafÃ© dâ€™or", "ﬁ e\u0301 _x_ --"])
def test_it_is_the_librarys(
    librarys: Callable[[str], Callable[[str], str]], name: str, parts: list[str]
) -> None:
    text = " ".join(parts)
    assert cleaner(name)(text) == librarys(name)(text)


@pytest.mark.parametrize("name", CLEANINGS)
@example(words=["Ã©t", "Ã©", "’tis"], data=None, token=MASK)
@example(words=["A\u0303©", "é", "“x”"], data=None, token=MASK)
@example(words=["<b>", "&amp;", "x"], data=None, token=MASK)
@example(words=["x", "y"], data=None, token="&amp;")
@example(words=["x", "y"], data=None, token="--")
@example(words=["Ã", "x", "©", "a"], data=None, token=None)
@example(words=["x", "Ã", "y", "©"], data=None, token=None)
@example(words=["“x”", "ﬁ", "a", "e\u0301"], data=None, token=None)
@given(
    words=st.lists(_TEXT.filter(lambda t: len(t.split()) == 1), max_size=6),
    data=st.data(),
    token=st.sampled_from([MASK, "<mask>", "a", None]) | _TEXT.map(str.strip).filter(bool),
)
def test_clean_words_make_every_clean_view(
    name: str, words: list[str], data: st.DataObject | None, token: str | None
) -> None:
    words = [word.strip() for word in words]
    if not words:
        return
    clean = cleaner(name)
    most = 2 ** len(words) - (1 if token is not None else 2)  # not all are left out
    masks = range(most + 1) if data is None else [data.draw(st.integers(0, most))]
    hidden = [[i for i in range(len(words)) if bits >> i & 1] for bits in masks]
    cleaned = cleaned_words(words, clean, token, hidden)
    if cleaned is None:
        return
    whole = HiddenWords("", words, hidden, token, has_clean=False).texts()
    mask = None if token is None else clean(token)
    joined = HiddenWords("", cleaned, hidden, mask, has_clean=False).texts()
    assert [clean(view) for view in whole] == joined


@pytest.mark.parametrize("name", ["lower", "whitespace"])
@pytest.mark.parametrize(
    "text",
    [
        "A young wizard's quest -- it begins in 1984, doesn't it?",
        "Amélie’s “secret” life — naïve, of course… Ünder ½ ﬁre",
        "東京 и дождь [MASK] the end",
        "Bonnie & Clyde do R&D <b>",
    ],
)
def test_ordinary_words_are_cleaned_once(name: str, text: str) -> None:
    for token in (MASK, "<mask>", None):
        cleaned = cleaned_words(text.split(), cleaner(name), token, [[0], [1, 2], [2]])
        assert cleaned is not None
        assert " ".join(cleaned) == cleaner(name)(text)


@pytest.mark.parametrize(
    "text",
    [
        "a &amp; b",
        "&eacute",
        "cafÃ© noir",
        "\x07",
        "a \x00b",
        "a \u200b b",
        "x\ufeff y",
        "＆ａｍｐ；",
        "a " + "b" * 10**6,
    ],
)
def test_what_depends_on_the_whole_text_is_cleaned_whole(text: str) -> None:
    for token in (MASK, None):
        assert cleaned_words(text.split(), cleaner("lower"), token, [[0]]) is None
