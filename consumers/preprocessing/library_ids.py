"""Whether producers make the ids that a model's own library makes of a text.

A library may clean a text before its tokenizer sees it, or wrap the tokenizer in a class that does.
So each text backbone is compared with its library's own call when it is loaded, on texts that hold
what libraries treat in their own ways, and on masked views of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import text_spec
from producers.recipes import text_views
from producers.recipes.tokens import TextSpec, TokenEncoder

# Texts to their ids: a row for each text.
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
    """A transformers tokenizer, if producers make the ids of its own call.

    Args:
        checkpoint: where the tokenizer is from.
        tokenizer: a transformers tokenizer.
        max_length: the most ids of a text, special ones included.

    Raises:
        ConfigError: it cannot be run without transformers, or gives other ids there.
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
    """Refuses a model whose library makes other ids of a text than producers do.

    Args:
        checkpoint: for messages.
        spec: how producers tokenize.
        own: the library's own call, with its truncation.
        library: its name, for messages.
        padded: whether ``own`` gives rows of the full length, which the model gets as they are.

    Raises:
        ConfigError: they differ; the first such text is named.
    """
    text = first_difference(spec, own, padded=padded)
    if text is not None:
        raise checkpoint.error(
            f"has a tokenizer.json that reads {text[:60]!r} otherwise than {library}'s own call"
        )


def first_difference(spec: TextSpec, own: Own, *, padded: bool = False) -> str | None:
    """The first text of which ``own`` makes other ids; see :func:`check_ids`."""
    encoder = TokenEncoder(spec)
    for index, probe in enumerate(PROBES):
        views = text_views.draw(probe, base_seed=0, index=index, views=_VIEWS)
        ids = np.empty((_VIEWS, spec.max_length), np.int32)
        lengths = np.empty(_VIEWS, np.int32)
        encoder.encode_views(views, ids, lengths)
        texts = views.texts()
        for text, row, length, expected in zip(texts, ids, lengths, own(texts), strict=True):
            if (row if padded else row[:length]).tolist() != list(expected):
                return text
    return None
