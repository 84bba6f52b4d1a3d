"""Encoding of text views as token ids, with the tokenizers library alone.

Rows are encoded one by one: many producer processes do this at the same time, and set
``TOKENIZERS_PARALLELISM=false`` so that the library does not start threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from producers.recipes.texts.cleaning import CLEANINGS, clean_words, cleaner
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.neighbours import Positions, neighbour_texts
from producers.recipes.texts.views import HiddenWords, TextViews
from producers.recipes.texts.word_ids import WordIds

TokenArray = NDArray[np.int32]

# Texts that the check at the start encodes in both ways: punctuation, digits, cases, other scripts.
_PROBES = (
    "A young wizard's quest -- it begins in 1984, doesn't it?  He said: \"No!\" (twice).",
    " Ünlü naïve ΟΔΟΣ 東京 123-456 e.g. U.S.A.\n\n[MASK] [MASK]; the end",
)
_PROBE_VIEWS = 5
_PROBE_RECIPES = (Mask(), Drop())
# Words of the views for each word of the texts to check from which joining words is faster.
_LEAST_GAIN = 2


@dataclass(frozen=True, slots=True)
class TextSpec:
    """The tokenizer of a text backbone and its settings, read from the checkpoint.

    Attributes:
        tokenizer_json: content of ``tokenizer.json``.
        max_length: maximum number of ids of a text, including special ids; longer texts are cut.
        pad_id: id that fills the rows behind a text's ids.
        strip: whether to remove white space around the text first, as sentence-transformers does.
        lower: whether to convert the text to lower case first.
        clean: name of open_clip's cleaning that comes before all this, one of
            ``cleaning.CLEANINGS``; ``""`` for other libraries.
        mask_token: the tokenizer's own mask token; ``""`` if it has none.
    """

    tokenizer_json: str
    max_length: int
    pad_id: int = 0
    strip: bool = False
    lower: bool = False
    clean: str = ""
    mask_token: str = ""

    def __post_init__(self) -> None:
        """Check values that the tokenizer would accept and silently misinterpret."""
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.clean and self.clean not in CLEANINGS:
            raise ValueError(f"clean is one of {', '.join(CLEANINGS)}, got {self.clean!r}")


class TokenEncoder:
    """Encodes texts exactly as the checkpoint's own tokenizer does.

    Attributes:
        spec: the specification of the tokenizer.
        by_words: whether the ids of a view can be joined from the ids of its words, which is
            faster.
    """

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self._clean = cleaner(spec.clean) if spec.clean else None
        # The file may contain settings of an earlier use, which do not apply here.
        self._tokenizer = Tokenizer.from_str(spec.tokenizer_json)
        self._tokenizer.no_padding()
        self._cut_texts()
        self._before, self._after = self._special_ids()
        self._room = spec.max_length - len(self._before) - len(self._after)
        self.by_words = self._room > 0 and all(
            self._agrees_by_words(probe, recipe) for probe in _PROBES for recipe in _PROBE_RECIPES
        )

    def encode_views(self, views: TextViews, ids: TokenArray, lengths: TokenArray) -> int:
        """Encode the views of one sample in place.

        Args:
            views: the views, without lone surrogates.
            ids: int32 [views, max_length], overwritten with the ids, then ``pad_id``.
            lengths: int32 [views], overwritten with the number of ids of each row.

        Returns:
            Number of texts that were cut.

        Raises:
            ValueError: an array has another shape or dtype.
        """
        if isinstance(views, HiddenWords):
            views = views.for_tokenizer(self.spec.mask_token)
            if self.by_words and views.words and views.hidden:
                words = self._word_ids(views)
                if words is not None and words.hold:
                    return self._join_words(views, words, ids, lengths)
        return self.encode(views.texts(), ids, lengths)

    def encode(self, texts: Sequence[str], ids: TokenArray, lengths: TokenArray) -> int:
        """Encode any texts without lone surrogates; see :meth:`encode_views`."""
        _check(ids, (len(texts), self.spec.max_length), "ids")
        _check(lengths, (len(texts),), "lengths")
        encodings = self._tokenizer.encode_batch_fast(self._prepare(texts))
        ids.fill(self.spec.pad_id)
        cut = 0
        for row, encoding in enumerate(encodings):
            tokens = encoding.ids
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
            cut += bool(encoding.overflowing)
        return cut

    def count(self, text: str) -> int:
        """Number of ids of a text before it is cut, including special ids."""
        with self._uncut():
            return len(self._tokenizer.encode_batch_fast(self._prepare([text]))[0].ids)

    def _join_words(
        self, views: HiddenWords, words: WordIds, ids: TokenArray, lengths: TokenArray
    ) -> int:
        """Joins the ids of words to views; view 0 is encoded as a whole, with its white space."""
        first = len(views.clean)
        _check(ids, (first + len(views.hidden), self.spec.max_length), "ids")
        cut = self.encode(views.clean, ids[:first], lengths[:first]) if first else 0
        ids[first:] = self.spec.pad_id
        ids[first:, : len(self._before)] = self._before
        for row, hidden in enumerate(views.hidden, first):
            tokens, more = words.view(hidden, self._room)
            end = len(self._before) + len(tokens)
            ids[row, len(self._before) : end] = tokens
            ids[row, end : end + len(self._after)] = self._after
            lengths[row] = end + len(self._after)
            cut += more
        return cut

    def _agrees_by_words(self, text: str, recipe: Mask | Drop) -> bool:
        """Whether joining the ids of words gives the ids of whole texts, for some views."""
        others = range(1, _PROBE_VIEWS)
        views = recipe.draw(text, others, others, has_clean=True)
        words = self._word_ids(views, is_probe=True)
        if words is None:
            return True  # such texts are always encoded as a whole
        if not words.hold:
            return False
        both = [np.zeros((_PROBE_VIEWS, self.spec.max_length + 1), np.int32) for _ in range(2)]
        joined, whole = ((array[:, 1:], array[:, 0]) for array in both)
        cut = self._join_words(views, words, *joined), self.encode(views.texts(), *whole)
        return cut[0] == cut[1] and np.array_equal(both[0], both[1])

    def _word_ids(self, views: HiddenWords, *, is_probe: bool = False) -> WordIds | None:
        """The ids of a sample's words.

        Returns:
            None if its views must be cleaned as a whole, or if encoding them as a whole is faster
            and ``is_probe`` is False.
        """
        texts = neighbour_texts(views)
        if not is_probe and _is_slower(views, texts):
            return None
        cleaned, token = views.words, views.token
        if self._clean is not None:
            by_word = clean_words(views.words, token, texts, self._clean)
            if by_word is None:
                return None
            cleaned, token = by_word, None if token is None else self._clean(token)
        with self._uncut():
            return WordIds(cleaned, token, texts, self._encode_parts)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """The special ids before and after the ids of a text."""
        with self._uncut():
            encoding = self._tokenizer.encode("x")
        special = encoding.special_tokens_mask
        before = special.index(0) if 0 in special else len(special)
        after = special[::-1].index(0) if 0 in special else 0
        return encoding.ids[:before], encoding.ids[len(special) - after :]

    def _encode_parts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of parts of a clean text, without special ids; white space is kept."""
        if self.spec.lower:
            texts = [text.lower() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _prepare(self, texts: Sequence[str]) -> list[str]:
        """The texts as they are passed to the tokenizer."""
        prepared = list(texts) if self._clean is None else [self._clean(text) for text in texts]
        if self.spec.strip:
            prepared = [text.strip() for text in prepared]
        return [text.lower() for text in prepared] if self.spec.lower else prepared

    def _cut_texts(self) -> None:
        self._tokenizer.enable_truncation(
            self.spec.max_length, stride=0, strategy="longest_first", direction="right"
        )

    @contextmanager
    def _uncut(self) -> Iterator[None]:
        self._tokenizer.no_truncation()
        try:
            yield
        finally:
            self._cut_texts()


def _is_slower(views: HiddenWords, texts: Sequence[Positions]) -> bool:
    """Whether the texts to check have so many words that encoding the views is faster."""
    left = sum(len(views.words) - len(hidden) for hidden in views.hidden)
    return views.token is None and left < _LEAST_GAIN * sum(map(len, texts))


def _check(array: TokenArray, shape: tuple[int, ...], name: str) -> None:
    """Refuse an array of another shape or dtype: NumPy would broadcast or cast it."""
    if array.shape != shape or array.dtype != np.int32:
        raise ValueError(f"{name} must be int32 {shape}, got {array.dtype} {array.shape}")
