"""Notices at the start of a build about features that are computed more slowly than necessary."""

from __future__ import annotations

from collections.abc import Mapping

from producers.recipes.texts.presets import text_recipe
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.worker import Job


def slow_paths(job: Job, texts: Mapping[str, TextSpec]) -> list[str]:
    """One line for each slow code path; the features are the same as those of the fast one.

    Args:
        job: the work of the producers.
        texts: the tokenizer of each text feature.
    """
    notices = []
    if job.images and not job.compiled:
        notices.append(
            "no compiled kernels: image views take several times as long, with the same result; "
            "install a C compiler, then manyviews again"
        )
    if not text_recipe(job.text_recipe).hides_words:
        return notices  # other views are always encoded as a whole
    notices += [
        f"{name}: the tokenizer does not encode word by word, so each view is encoded as a whole: "
        "text views take several times as long, with the same result"
        for name, spec in texts.items()
        if not TokenEncoder(spec).by_words
    ]
    return notices
