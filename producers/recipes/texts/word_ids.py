"""Ids of views with hidden words, joined from the ids of the words.

The 70 texts of a sample consist of the same words, except for the hidden ones. Therefore each word
is encoded once, and the ids of a view are looked up. This equals encoding the view if the tokenizer
splits at white space and the ids of a word depend at most on its neighbours. It is true of the
usual tokenizers, but not of all, nor for every text (a word may begin with an accent that joins the
space before it). So it is checked for every sample, with texts that contain every pair of
neighbours that a view has, see ``neighbours``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from producers.recipes.texts.neighbours import Positions, joined, kept

Ids = NDArray[np.int32]
# Function from texts to their ids, without special ids and without truncation.
Encode = Callable[[Sequence[str]], list[list[int]]]


class WordIds:
    """The ids of one sample's words.

    A word is encoded with the space before it, which some tokenizers include in the word; the first
    word of a view has none.

    Attributes:
        hold: whether the joined ids equal the ids of the whole texts.
    """

    def __init__(
        self, words: Sequence[str], token: str | None, texts: Sequence[Positions], encode: Encode
    ) -> None:
        """Encodes the words and the token.

        Args:
            words: the words, at least one.
            token: what replaces hidden words; None if they are left out.
            texts: the texts to check, see ``neighbour_texts``.
            encode: the tokenizer.
        """
        self._words, self._token = words, token
        distinct = {word: form for form, word in enumerate(dict.fromkeys(words))}
        forms = [f" {word}" for word in distinct]
        inner = [distinct[word] for word in words]
        if token is not None:
            inner.append(len(forms))  # position -1
            forms.append(f" {token}")
        first = sorted({int(text[0]) for text in texts})
        self._first = {at: len(forms) + form for form, at in enumerate(first)}
        forms += [joined(words, token, np.array([at])) for at in first]
        ids = encode(forms)
        self._ids = np.fromiter(chain.from_iterable(ids), np.int32)
        self._lengths = np.fromiter(map(len, ids), np.intp, len(ids))
        self._starts = self._lengths.cumsum() - self._lengths
        self._inner = np.array(inner, np.intp)
        self.hold = self._check(texts, encode)

    def view(self, hidden: Sequence[int], room: int) -> tuple[Ids, bool]:
        """The ids of a view.

        Args:
            hidden: positions of the hidden words.
            room: maximum number of ids to return, at least 1.

        Returns:
            At most ``room`` ids, and whether the view has more.
        """
        if self._token is None:
            positions = kept(len(self._words), hidden)
            forms, first = self._inner[positions], int(positions[0])
        else:
            forms = self._inner[:-1].copy()
            forms[hidden] = self._inner[-1]
            first = -1 if 0 in hidden else 0
        forms[0] = self._first[first]
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

    def _check(self, texts: Sequence[Positions], encode: Encode) -> bool:
        """Whether the ids of these texts are those of their words."""
        expected = encode([joined(self._words, self._token, text) for text in texts])
        for text, ids in zip(texts, expected, strict=True):
            forms = self._inner[text]
            forms[0] = self._first[int(text[0])]
            if self._join(forms).tolist() != ids:
                return False
        return True
