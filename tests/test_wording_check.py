"""The check of words finds what it bans, across line breaks too, and nothing else."""

from __future__ import annotations

from tools.check_wording import findings


def test_each_banned_word_is_found_where_it_is() -> None:
    text = """A chunk is mended, and
# the build goes
# on with the chunk in hand; it was told so by a Stranger.
Memory that can be had stands in for one of one's own."""
    found = {(line, words.replace("# ", "").lower()) for line, words, _ in findings(text)}
    assert found == {
        *((1, "mended"), (2, "goes on"), (3, "in hand"), (3, "told"), (3, "stranger")),
        *((4, "can be had"), (4, "stands in"), (4, "of one's own")),
    }


def test_words_that_only_look_alike_are_not_found() -> None:
    text = "Recommend the untold amendment; a golden one goes one step, in handy understanding."
    assert list(findings(text)) == []
