"""Ids of masked views, put together from the ids of their words.

A sample's 70 texts are the same words over and over, but for those that are hidden. So each word is
encoded once, and a view's ids are looked up. That equals encoding the view where a tokenizer splits
at white space and a word's ids depend at most on its neighbours: true of the usual ones, but not of
all, nor of every text (a word may begin with an accent that joins the space before it). So it is
checked for every sample, with two texts in which all neighbours occur that views can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from producers.recipes.text_views import MASK

Ids = NDArray[np.int32]
# Texts to their ids, without special ones and uncut.
Encode = Callable[[Sequence[str]], list[list[int]]]

# A word is encoded with the space before it, which some tokenizers make part of it; a view's first
# word has none. These are the forms that every sample has: the mask, both ways.
_FIRST_MASK, _MASK, _FIRST_WORD = 0, 1, 2


class WordIds:
    """The ids of one sample's words.

    Attributes:
        hold: whether ids put together are those of the texts.
    """

    def __init__(self, words: Sequence[str], encode: Encode, mask: str = MASK) -> None:
        """Encodes the words, of which there is at least one, and what hides a word."""
        distinct = {word: form for form, word in enumerate(dict.fromkeys(words), _FIRST_WORD + 1)}
        ids = encode([mask, f" {mask}", words[0], *(f" {word}" for word in distinct)])
        self._ids = np.fromiter(chain.from_iterable(ids), np.int32)
        self._lengths = np.fromiter(map(len, ids), np.intp, len(ids))
        self._starts = self._lengths.cumsum() - self._lengths
        inner = [distinct[word] for word in words]
        self._forms = np.array([_FIRST_WORD, *inner[1:]], np.intp)
        self.hold = self._check(words, inner, encode, mask)

    def view(self, masked: Sequence[int], room: int) -> tuple[Ids, bool]:
        """The ids of a view.

        Args:
            masked: positions of the words that it hides.
            room: the most ids that are wanted, at least 1.

        Returns:
            At most ``room`` ids, and whether there are more.
        """
        forms = self._forms.copy()
        forms[masked] = _MASK
        if forms[0] == _MASK:
            forms[0] = _FIRST_MASK
        ends = self._lengths[forms].cumsum()
        words = ends.searchsorted(room) + 1
        return self._join(forms[:words])[:room], bool(ends[-1] > room)

    def _join(self, forms: NDArray[np.intp]) -> Ids:
        """The ids of these forms, one behind the other."""
        lengths = self._lengths[forms]
        ends = lengths.cumsum()
        at = np.arange(ends[-1]) + np.repeat(self._starts[forms] - ends + lengths, lengths)
        joined: Ids = self._ids[at]
        return joined

    def _check(self, words: Sequence[str], inner: list[int], encode: Encode, mask: str) -> bool:
        """Compares two texts: all words, and all words with a mask before and after each."""
        between = [_FIRST_MASK, *chain.from_iterable((form, _MASK) for form in inner), _MASK]
        masked = f"{mask} {f' {mask} '.join(words)} {mask} {mask}"
        expected = encode([" ".join(words), masked])
        found = (self._join(self._forms), self._join(np.array(between)))
        return all(f.tolist() == e for f, e in zip(found, expected, strict=True))
