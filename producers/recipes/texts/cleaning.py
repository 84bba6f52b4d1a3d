"""open_clip's cleaning of a text before tokenization.

It is implemented here because importing open_clip loads torch. Loading a model checks that the
results equal those of the library (``consumers.preprocessing.library_ids``).

Mojibake is detected in the text as a whole, so the clean text of a view may differ from its cleaned
words. If it does not, each word is cleaned once for all views, see :func:`clean_words`.
"""

from __future__ import annotations

import functools
import html
import string
from collections.abc import Callable, Sequence

CLEANINGS = ("lower", "whitespace", "canonicalize")
"""open_clip's names of its cleaning functions."""

Clean = Callable[[str], str]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# ftfy splits longer texts into parts of this length, at any character.
_PART = 1_000_000


def cleaner(name: str) -> Clean:
    """The cleaning function with a name of ``CLEANINGS``."""
    return functools.partial(_clean, name)


def _clean(name: str, text: str) -> str:
    import ftfy  # imported only by producers that clean texts

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if name == "canonicalize":
        text = text.strip().replace("_", " ").translate(_NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if name == "lower" else text


def clean_words(words: Sequence[str], clean: Clean, token: str) -> list[str] | None:
    """Cleans words one by one, if that gives the clean text of every view.

    This is checked with two texts: all words, and all words with a mask before and after each.
    Every pair of neighbours that a view can have is in one of them.

    Args:
        words: the words.
        clean: the cleaning function.
        token: what replaces hidden words.

    Returns:
        The cleaned words, which may contain spaces; None if views must be cleaned as a whole.
    """
    distinct = {word: clean(word) for word in dict.fromkeys(words)}
    # If a word becomes empty, another word may become the first one.
    if not all(distinct.values()) or any(map(_may_hold_entity, distinct)):
        return None
    cleaned, mask = [distinct[word] for word in words], clean(token)
    for before, after in (
        (" ".join(words), " ".join(cleaned)),
        (_between(token, words), _between(mask, cleaned)),
    ):
        if not _is_fixed_by_characters(before) or clean(before) != after:
            return None
    return cleaned


def _between(mask: str, words: Sequence[str]) -> str:
    """All words, with a mask before and after each."""
    return f"{mask} {f' {mask} '.join(words)} {mask}"


def _may_hold_entity(word: str) -> bool:
    """Whether a word may contain an entity: ftfy keeps entities in texts that contain ``<``.

    ftfy replaces full-width characters first.
    """
    return "＆" in word or ("&" in word and (";" in word or html.unescape(word) != word))


def _is_fixed_by_characters(text: str) -> bool:
    """Whether ftfy cleans a text without entities character by character, finding no mojibake.

    The search for mojibake looks at a few neighbouring characters. If it finds nothing, the other
    fixes (ligatures, widths, quotes, accents) only affect single characters and those that combine
    with them. Unprintable characters would be removed, which creates new neighbours.
    """
    if len(text) > _PART or not text.isprintable():
        return False
    if text.isascii():
        return True
    import ftfy
    from ftfy.badness import is_bad

    fixed = ftfy.fix_text(text, fix_encoding=False, unescape_html=False)
    return not is_bad(text) and not is_bad(fixed)
