"""The cleaning against open_clip itself, and cleaned words against cleaned whole views."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts.cleaning import CLEANINGS, clean_words, cleaner
from producers.recipes.texts.views import MASK

# What mojibake, entities, ligatures, widths and accents are made of, and what is removed.
_HARD = "aZÃ©¢Â¬œ€™“”’‘—–&amp;#39<>lt_-.ﬁＡ＆；ﾊﾞ\u0301\u0308éàİΣς"
_HARD += "\x00\x1b[m\u200b\ufeff\xad\xa0\x85\u2028 \n"
_TEXT = st.text(st.sampled_from(_HARD) | st.characters(codec="utf-8"), max_size=12)


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
@given(words=st.lists(_TEXT.filter(lambda t: len(t.split()) == 1), max_size=6), data=st.data())
@example(words=["Ã©t", "Ã©", "’tis"], data=None)
@example(words=["A\u0303©", "é", "“x”"], data=None)
@example(words=["<b>", "&amp;", "x"], data=None)
def test_clean_words_make_every_clean_view(
    name: str, words: list[str], data: st.DataObject | None
) -> None:
    words = [word.strip() for word in words]
    clean = cleaner(name)
    cleaned = clean_words(words, clean, MASK) if words else None
    if cleaned is None:
        return
    hidden = range(2 ** len(words)) if data is None else [data.draw(st.integers(0, 63))]
    for bits in hidden:
        hides = [bool(bits >> i & 1) for i in range(len(words))]
        view = [MASK if hide else word for hide, word in zip(hides, words, strict=True)]
        parts = [clean(MASK) if hide else word for hide, word in zip(hides, cleaned, strict=True)]
        assert clean(" ".join(view)) == " ".join(parts)


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
    cleaned = clean_words(text.split(), cleaner(name), MASK)
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
    assert clean_words(text.split(), cleaner("lower"), MASK) is None
