"""The text recipe against a reference written from its description; the seeds' known answers."""

import hashlib
import random

import pytest

from featurestore.records import Salt, view_seed
from producers.recipes.texts.hiding import hidden_words
from tests.producers.views import text_views

WORDS = [f"w{i}" for i in range(200)]


@pytest.mark.parametrize(
    ("index", "view", "salt", "expected"),
    [
        (0, 1, "image", 4239926553),
        (0, 1, "text", 2199293484),
        (0, 1, "labels", 3883996548),
        (7, 69, "image", 2414661109),
        (25958, 69, "text", 486677006),
    ],
)
def test_seed_known_answers(index: int, view: int, salt: Salt, expected: int) -> None:
    assert view_seed(123, index, view, salt) == expected


def test_seeds_differ_in_every_part() -> None:
    salts: tuple[Salt, ...] = ("image", "text")
    parts = [(b, i, v, s) for b in (1, 12) for i in range(12) for v in range(12) for s in salts]
    assert len({view_seed(*part) for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 1),
        (9, 1),
        (10, 2),
        (13, 2),
        (30, 4),
        (50, 8),
        (70, 10),
        (90, 14),
    ],
)
def test_mask_counts_round_halves_to_even(words: int, hidden: int) -> None:
    for seed in (0, 1, 2**32 - 1):
        positions = hidden_words(words, 0.15, seed)
        assert len(positions) == len(set(positions)) == hidden
        assert set(positions) <= set(range(words))


def views(text: str, base_seed: int, index: int, views: int) -> list[str]:
    return text_views(text, base_seed, index, views).texts()


def reference_view(text: str, index: int, view: int) -> str:
    seed = int(hashlib.sha256(b"123:%d:%d:text" % (index, view)).hexdigest()[:8], 16)
    toks = text.split()
    n = len(toks)
    if n == 0:
        return ""
    k = max(1, int(round(0.15 * n)))  # noqa: RUF046
    idx = list(range(n))
    rng = random.Random()
    rng.seed(seed)
    rng.shuffle(idx)
    hide = set(idx[:k])
    return " ".join("[MASK]" if j in hide else tok for j, tok in enumerate(toks))


@pytest.mark.parametrize("count", [1, 2, 7, 10, 33, 150, 700])
def test_views_equal_the_reference(count: int) -> None:
    text = "\n ".join(f"word{i},é" for i in range(count)) + " "
    made = views(text, base_seed=123, index=count, views=70)
    assert made[0] == text
    assert made[1:] == [reference_view(text, count, view) for view in range(1, 70)]


def test_known_view() -> None:
    text = "a b c d e f g h i j"
    assert views(text, 123, 0, 2)[1] == "[MASK] [MASK] c d e f g h i j"


@pytest.mark.parametrize(
    ("text", "masked"), [("", ""), (" \n\t", ""), ("one", "[MASK]"), (" one ", "[MASK]")]
)
def test_texts_of_at_most_one_word(text: str, masked: str) -> None:
    assert views(text, 123, 5, 4) == [text, masked, masked, masked]


@pytest.mark.parametrize("text", ["\x00 a", "a\u00a0b c", "\u202eabc \u0301", "[MASK] [MASK]"])
def test_any_unicode_white_space_separates_words(text: str) -> None:
    made = views(text, 123, 1, 3)
    assert made[0] == text
    assert all(len(view.split(" ")) == len(text.split()) for view in made[1:])


def test_one_view_is_the_clean_one() -> None:
    assert views(" a  b ", 123, 0, 1) == [" a  b "]


def test_global_generator_is_left_alone() -> None:
    random.seed(1)
    before = random.getstate()
    views("a b c", 123, 0, 70)
    assert random.getstate() == before
