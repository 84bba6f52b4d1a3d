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

from producers.recipes.texts.neighbours import Positions, joined

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


def clean_words(
    words: Sequence[str], token: str | None, texts: Sequence[Positions], clean: Clean
) -> list[str] | None:
    """Cleans words one by one, if that gives the clean text of every view.

    Args:
        words: the words.
        token: what replaces hidden words; None if they are left out.
        texts: the texts to check, which contain every pair of neighbours of the views, see
            ``neighbour_texts``.
        clean: the cleaning function.

    Returns:
        The cleaned words, which may contain spaces; None if views must be cleaned as a whole.
    """
    distinct = {word: clean(word) for word in dict.fromkeys(words)}
    # If a word becomes empty, another word may become the first one.
    if not all(distinct.values()) or any(map(_may_hold_entity, (*distinct, token or ""))):
        return None
    cleaned, mask = [distinct[word] for word in words], None if token is None else clean(token)
    for text in texts:
        before, after = joined(words, token, text), joined(cleaned, mask, text)
        if not _is_fixed_by_characters(before) or clean(before) != after:
            return None
    return cleaned


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
