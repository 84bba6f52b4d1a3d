"""How open_clip cleans a text before its tokenizer sees it.

Written out here because importing open_clip loads torch. That it is what the library does is
checked when a model is loaded (``consumers.preprocessing.library_ids``).

Mojibake is told by a look at the whole text, so a view's clean text is not always that of its
words. Where it is, each word is cleaned once for all views, see :func:`clean_words`.
"""

from __future__ import annotations

import functools
import html
import string
from collections.abc import Callable, Sequence

from producers.recipes.text_views import MASK

CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names for its ways of cleaning."""

Clean = Callable[[str], str]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# ftfy cuts longer texts into parts of this length, wherever that is.
_PART = 1_000_000


def cleaner(name: str) -> Clean:
    """The function of one of ``CLEANINGS``: after mojibake and entities, white space and more."""
    return functools.partial(_clean, name)


def _clean(name: str, text: str) -> str:
    import ftfy  # in those producers only that clean

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if name == "canonicalize":
        text = text.strip().replace("_", " ").translate(_NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if name == "lower" else text


def clean_words(words: Sequence[str], clean: Clean) -> list[str] | None:
    """The words cleaned one by one, if that makes the clean text of every view.

    Compares two texts: all words, and all words with a mask before and after each. Whatever two
    neighbours do to each other in a view is in one of them.

    Returns:
        As many words, which may hold a space; None where views must be cleaned as a whole.
    """
    distinct = {word: clean(word) for word in dict.fromkeys(words)}
    # A word that vanishes changes which one is first.
    if not all(distinct.values()) or any(map(_may_hold_entity, distinct)):
        return None
    cleaned, mask = [distinct[word] for word in words], clean(MASK)
    for before, after in (
        (" ".join(words), " ".join(cleaned)),
        (_between(MASK, words), _between(mask, cleaned)),
    ):
        if not _is_fixed_by_characters(before) or clean(before) != after:
            return None
    return cleaned


def _between(mask: str, words: Sequence[str]) -> str:
    """All words, with a mask before and after each."""
    return f"{mask} {f' {mask} '.join(words)} {mask}"


def _may_hold_entity(word: str) -> bool:
    """Whether an entity may be in a word: ftfy leaves entities where ``<`` is in the text.

    Characters of full width are made narrow first.
    """
    return "＆" in word or ("&" in word and (";" in word or html.unescape(word) != word))


def _is_fixed_by_characters(text: str) -> bool:
    """Whether ftfy finds no mojibake in a text without entities, so no character sways others.

    Its search for mojibake looks at a few neighbouring characters. Where that finds nothing, what
    is left (ligatures, widths, quotes, accents) concerns single characters and those that combine
    with them. Characters that are not printable would be removed, which makes new neighbours.
    """
    if len(text) > _PART or not text.isprintable():
        return False
    if text.isascii():
        return True
    import ftfy
    from ftfy.badness import is_bad

    fixed = ftfy.fix_text(text, fix_encoding=False, unescape_html=False)
    return not is_bad(text) and not is_bad(fixed)
