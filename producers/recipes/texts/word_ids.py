"""Ids of masked views, joined from the ids of their words.

The 70 texts of a sample consist of the same words, except for the hidden ones. Therefore each word
is encoded once, and the ids of a view are looked up. This equals encoding the view if the tokenizer
splits at white space and the ids of a word depend at most on its neighbours. It is true of the
usual tokenizers, but not of all, nor for every text (a word may begin with an accent that joins the
space before it). So it is checked for every sample, with two texts that contain every pair of
neighbours that a view can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
# Function from texts to their ids, without special ids and without truncation.
Encode = Callable[[Sequence[str]], list[list[int]]]

# A word is encoded with the space before it, which some tokenizers include in the word; the first
# word of a view has none. Every sample has these forms: the mask in both ways, and the first word.
_FIRST_MASK, _MASK, _FIRST_WORD = 0, 1, 2


class WordIds:
    """The ids of one sample's words.

    Attributes:
        hold: whether the joined ids equal the ids of the whole texts.
    """

    def __init__(self, words: Sequence[str], encode: Encode, mask: str) -> None:
        """Encodes the words, at least one, and the mask."""
        distinct = {word: form for form, word in enumerate(dict.fromkeys(words), _FIRST_WORD + 1)}
        ids = encode([mask, f" {mask}", words[0], *(f" {word}" for word in distinct)])
        self._ids = np.fromiter(chain.from_iterable(ids), np.int32)
        self._lengths = np.fromiter(map(len, ids), np.intp, len(ids))
        self._starts = self._lengths.cumsum() - self._lengths
        inner = [distinct[word] for word in words]
        self._forms = np.array([_FIRST_WORD, *inner[1:]], np.intp)
        self.hold = self._check(words, inner, encode, mask)

    def view(self, hidden: Sequence[int], room: int) -> tuple[Ids, bool]:
        """The ids of a view.

        Args:
            hidden: positions of the hidden words.
            room: maximum number of ids to return, at least 1.

        Returns:
            At most ``room`` ids, and whether the view has more.
        """
        forms = self._forms.copy()
        forms[hidden] = _MASK
        if forms[0] == _MASK:
            forms[0] = _FIRST_MASK
        ends = self._lengths[forms].cumsum()
        words = ends.searchsorted(room) + 1
        return self._join(forms[:words])[:room], bool(ends[-1] > room)

    def _join(self, forms: NDArray[np.intp]) -> Ids:
        """The concatenated ids of these forms."""
        lengths = self._lengths[forms]
        ends = lengths.cumsum()
        at = np.arange(ends[-1]) + np.repeat(self._starts[forms] - ends + lengths, lengths)
        joined: Ids = self._ids[at]
        return joined

    def _check(self, words: Sequence[str], inner: list[int], encode: Encode, mask: str) -> bool:
        """Checks two texts: all words, and all words with a mask before and after each."""
        between = [_FIRST_MASK, *chain.from_iterable((form, _MASK) for form in inner), _MASK]
        masked = f"{mask} {f' {mask} '.join(words)} {mask} {mask}"
        expected = encode([" ".join(words), masked])
        joined = (self._join(self._forms), self._join(np.array(between)))
        return all(j.tolist() == e for j, e in zip(joined, expected, strict=True))
