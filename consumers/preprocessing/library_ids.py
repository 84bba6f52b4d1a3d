"""Checks that producers compute the same token ids as a model's own library.

A library may clean a text before tokenization, or wrap the tokenizer in a class that does. So when
a text backbone is loaded, its ids are compared with those of the library, for texts with characters
that libraries treat differently and for views of these texts that mask or leave out words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import text_spec
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.recipes.texts.views import MASK, MODEL, HiddenWords

# Function from texts to their ids, one row per text.
Own = Callable[[list[str]], Sequence[Sequence[int]]]

PROBES = (
    "",
    "a spy",
    " Two  cats,\n and a DOG! (1999) don't [MASK] it's 3.5\t",
    "A spy’s story: “one” ‘two’ — it’s…",
    "Tom &amp; Jerry &lt;3 &#39;x&#39; &eacute; &amp;amp; R&D <i>a</i> & &nbsp;b",
    "&amp;quot;no tags&quot; &ccedil;a",
    "ﬁne ﬂow ﬆar ĳ Ⅳ ½ № ﷺ",
    "cafÃ© dâ€™or â€œxâ€\x9d naÃ¯ve",
    "😀 👨‍👩‍👧 🇫🇷 ☃️ 🧙🏽",
    "Amélie naïve Ünder e\u0301te\u0301 A\u030angstro\u0308m \u0301x",
    "SHOUTING İstanbul ΟΔΟΣ STRASSE ẞ",
    "a\x00b c\x07 d\x1b[31me\x1b[0m \x7f \u200b\ufeff\u00ad f",
    "g\u00a0h\u2028i\u2029j\r\nk\x85l\u3000m",
    "ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ ＆ａｍｐ；",
    "-- ... !! __ a_b _c_ #1 5% x-ray",
    "東京 и дождь 雨",
    "war " * 300,
)
_VIEWS = 3


def checked_spec(checkpoint: Checkpoint, tokenizer: Any, max_length: int) -> TextSpec:
    """The specification of a transformers tokenizer, checked against transformers' own ids.

    Args:
        checkpoint: the checkpoint of the tokenizer.
        tokenizer: a transformers tokenizer.
        max_length: maximum number of ids of a text, including special ids.

    Raises:
        ConfigError: the tokenizer cannot run without transformers, or gives other ids there.
    """
    spec = text_spec(checkpoint, tokenizer, max_length)

    def own(texts: list[str]) -> Sequence[Sequence[int]]:
        rows: Sequence[Sequence[int]] = tokenizer(texts, truncation=True, max_length=max_length)[
            "input_ids"
        ]
        return rows

    check_ids(checkpoint, spec, own, "transformers")
    return spec


def check_ids(
    checkpoint: Checkpoint, spec: TextSpec, own: Own, library: str, *, padded: bool = False
) -> None:
    """Refuses a model whose library computes other ids of a text than producers do.

    Args:
        checkpoint: the checkpoint, for messages.
        spec: the specification that producers use.
        own: the library's function, with its truncation.
        library: name of the library, for messages.
        padded: whether ``own`` returns rows of the full length, which the model expects.

    Raises:
        ConfigError: the ids differ; the message quotes the first such text.
    """
    text = first_difference(spec, own, padded=padded)
    if text is not None:
        raise checkpoint.error(
            f"has a tokenizer.json that reads {text[:60]!r} otherwise than {library} does"
        )


def first_difference(spec: TextSpec, own: Own, *, padded: bool = False) -> str | None:
    """The first text for which ``own`` returns other ids, or None; see :func:`check_ids`."""
    encoder = TokenEncoder(spec)
    for index, probe in enumerate(PROBES):
        for views in _views(spec, probe, index):
            texts = views.texts()
            ids = np.empty((len(texts), spec.max_length), np.int32)
            lengths = np.empty(len(texts), np.int32)
            encoder.encode_views(views, ids, lengths)
            for text, row, length, expected in zip(texts, ids, lengths, own(texts), strict=True):
                if (row if padded else row[:length]).tolist() != list(expected):
                    return text
    return None


def _views(spec: TextSpec, probe: str, index: int) -> list[HiddenWords]:
    """Views of a text by every recipe that hides words; the first ones include the text itself."""
    recipes: list[Mask | Drop] = [Mask(), Drop()]
    if spec.mask_token not in ("", MASK):
        recipes.append(Mask(token=MODEL))
    others = range(1, _VIEWS)
    seeds = range(index * _VIEWS, index * _VIEWS + _VIEWS - 1)
    drawn = [recipe.draw(probe, others, seeds, has_clean=not i) for i, recipe in enumerate(recipes)]
    return [views.for_tokenizer(spec.mask_token) for views in drawn]
