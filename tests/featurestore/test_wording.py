"""Numbers and ranges with their nouns."""

from __future__ import annotations

import pytest

from featurestore.wording import amount, span


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ("chunk",), "0 chunks"),
        (1, ("chunk",), "1 chunk"),
        (2, ("bad input",), "2 bad inputs"),
        (25_959, ("sample",), "25,959 samples"),
        (1, ("synopsis", "synopses"), "1 synopsis"),
        (7, ("synopsis", "synopses"), "7 synopses"),
    ],
)
def test_a_number_has_its_noun(count: int, words: tuple[str, ...], expected: str) -> None:
    assert amount(count, *words) == expected


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (12, 12, "12 words"),
        (1, 1, "1 word"),
        (0, 1, "0 to 1 word"),
        (12, 1_500, "12 to 1,500 words"),
    ],
)
def test_a_range_of_one_number_is_that_number(least: int, most: int, expected: str) -> None:
    assert span(least, most, "word") == expected
