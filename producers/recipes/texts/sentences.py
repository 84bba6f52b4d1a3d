"""The recipe of views that are some of the sentences of a text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from producers.recipes.recipe import require_share
from producers.recipes.texts.hiding import shuffle
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import WholeTexts

_WIDE = "。！？"
_CLOSING = "\"'”’»›)]}」』）】》"
_END = re.compile(rf"([.!?…{_WIDE}]+)[{re.escape(_CLOSING)}]*(\s*)")


@dataclass(frozen=True)
class Sentences(TextRecipe):
    """Every view is some of the sentences of the text; see :func:`split_sentences`.

    Sentences are joined by one space, or by nothing after ``。``, ``！`` and ``？``. A text of one
    sentence keeps it.

    Attributes:
        share: share of the sentences that a view has, halves rounded to even, at least one.
        shuffle: whether they are in random order instead of that of the text.
    """

    name: ClassVar[str] = "sentences"
    version: ClassVar[int] = 1

    share: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        """Checks the share.

        Raises:
            ConfigError: it is not above 0 and at most 1.
        """
        require_share(self, "share", above=0.0)

    def draw(
        self,
        text: str,
        views: Sequence[int],
        seeds: Sequence[int],
        *,
        has_clean: bool,
        texts: Sequence[str] = (),
    ) -> WholeTexts:
        """The views of a text; see :class:`TextRecipe`."""
        del views, texts
        sentences = split_sentences(text)
        others = [joined([sentences[i] for i in self._chosen(len(sentences), s)]) for s in seeds]
        return WholeTexts(text, others, has_clean)

    def _chosen(self, sentences: int, seed: int) -> list[int]:
        """The positions of a view's sentences, in their order in the view."""
        positions = list(range(sentences))
        shuffle(positions, random.Random(seed))
        chosen = positions[: max(1, round(self.share * sentences))]
        return chosen if self.shuffle else sorted(chosen)


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, without white space around them.

    A sentence ends with one or more of ``. ! ? …``, any closing quotes and brackets, and white
    space or the end of the text; or with ``。 ！ ？`` and any closing quotes and brackets. What
    follows the last end is a sentence, too. Abbreviations such as "e.g." end one.
    """
    sentences, start = [], 0
    for found in _END.finditer(text):
        marks, space = found.groups()
        # Scripts with these marks write no white space between sentences.
        if space or found.end() == len(text) or marks.endswith(tuple(_WIDE)):
            sentences.append(text[start : found.end()].strip())
            start = found.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def joined(sentences: Sequence[str]) -> str:
    """Joins sentences by one space, or by nothing after ``。``, ``！`` and ``？``."""
    is_wide = [sentence.rstrip(_CLOSING).endswith(tuple(_WIDE)) for sentence in sentences]
    parts = zip(sentences, is_wide, strict=True)
    return "".join(text if wide else f"{text} " for text, wide in parts).rstrip()
