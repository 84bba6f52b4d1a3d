"""The recipes of texts: their views against references written from their descriptions."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError
from featurestore.records import view_seeds
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.presets import TEXT_RECIPES, recorded_text_recipe, text_recipe
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.sentences import Sentences, joined, split_sentences
from tests.producers.views import text_views

TEXT = "A spy meets  two men.\nThey leave: why? Nobody knows! It ends so"
SENTENCES = ["A spy meets  two men.", "They leave: why?", "Nobody knows!", "It ends so"]


def views(recipe: TextRecipe, text: str, count: int = 6, **more: Any) -> list[str]:
    return text_views(text, 123, 4, count, recipe=recipe, **more).texts()


def orders(count: int, of: int) -> list[list[int]]:
    """The order that each view's generator shuffles positions into."""
    drawn = []
    for seed in view_seeds(123, 4, range(1, count), "text"):
        order = list(range(of))
        random.Random(seed).shuffle(order)
        drawn.append(order)
    return drawn


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 1.0])
def test_drop_leaves_out_the_words_that_mask_hides(share: float) -> None:
    words = TEXT.split()
    most = min(max(1, round(share * len(words))), len(words) - 1)
    [clean, *dropped] = views(Drop(share), TEXT)
    assert clean == TEXT
    for view, order in zip(dropped, orders(6, len(words)), strict=True):
        assert view == " ".join(w for i, w in enumerate(words) if i not in order[:most])
    if share < 1:
        for view, masked in zip(dropped, views(Mask(share), TEXT)[1:], strict=True):
            assert view.split() == [word for word in masked.split() if word != "[MASK]"]


@pytest.mark.parametrize(("text", "view"), [("", ""), (" \n", ""), (" one ", "one")])
def test_drop_keeps_at_least_one_word(text: str, view: str) -> None:
    assert views(Drop(), text, 3) == [text, view, view]


@pytest.mark.parametrize("token", ["[MASK]", "<mask>", "[a b]", "model"])
def test_mask_replaces_words_by_any_token(token: str) -> None:
    shown = "[MASK]" if token == "model" else token
    words = TEXT.split()
    for view, order in zip(views(Mask(0.3, token), TEXT)[1:], orders(6, len(words)), strict=True):
        hidden = order[: round(0.3 * len(words))]
        assert view == " ".join(shown if i in hidden else w for i, w in enumerate(words))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.5, 2), (0.6, 2), (1.0, 4)])
def test_sentences_are_a_random_part_of_the_text(share: float, count: int, shuffle: bool) -> None:
    [clean, *others] = views(Sentences(share, shuffle), TEXT)
    assert clean == TEXT
    for view, order in zip(others, orders(6, 4), strict=True):
        chosen = order[:count] if shuffle else sorted(order[:count])
        assert view == " ".join(SENTENCES[i] for i in chosen)


@pytest.mark.parametrize("text", ["", "  ", "One sentence only", "\n"])
def test_a_text_of_one_sentence_keeps_it(text: str) -> None:
    assert views(Sentences(), text, 3) == [text, text.strip(), text.strip()]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (TEXT, SENTENCES),
        (
            'He said "No!" (Twice.) Then…  "Why?!"',
            ['He said "No!"', "(Twice.)", "Then…", '"Why?!"'],
        ),
        ("Version 3.5 of www.example.org is out.", ["Version 3.5 of www.example.org is out."]),
        ("No. e.g. this", ["No.", "e.g.", "this"]),
        ("東京へ行く。「本当？」はい！そう", ["東京へ行く。", "「本当？」", "はい！", "そう"]),
        ("雨。 風。\n", ["雨。", "風。"]),
        ("... a ?! .", ["...", "a ?!", "."]),
        ("«Oui.» “Ja.” ‘Si.’ [No.] x", ["«Oui.»", "“Ja.”", "‘Si.’", "[No.]", "x"]),
    ],
)
def test_sentences_end_as_documented(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_sentences_are_joined_as_their_script_does() -> None:
    assert joined(["雨。", "「風？」", "x.", "y"]) == "雨。「風？」x. y"
    assert joined([]) == ""


@given(st.text(st.sampled_from('ab .!?…。！？"”’)」\n\t') | st.characters(codec="utf-8")))
def test_no_character_of_a_text_is_lost_between_sentences(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(s and s == s.strip() for s in sentences)
    for sentence in sentences:
        assert split_sentences(sentence) == [sentence]


def test_a_long_run_of_marks_takes_no_quadratic_time() -> None:
    assert split_sentences("." * 300_000 + "a" + '"' * 300_000) == [
        "." * 300_000 + "a" + '"' * 300_000
    ]


def test_given_texts_repeat() -> None:
    recipe = text_recipe({"name": "given"})
    texts = ["one", "two", "three"]
    assert views(recipe, "one", 8, texts=texts) == [texts[v % 3] for v in range(8)]
    assert views(recipe, "one", 8, texts=texts, first_view=5) == ["three", "one", "two"]
    assert views(recipe, "one", 3, texts=["one"]) == ["one"] * 3
    assert views(recipe, "", 3) == [""] * 3


def test_none_is_the_clean_text_alone() -> None:
    recipe = text_recipe({"name": "none"})
    assert recipe.fixed_views == 1
    assert views(recipe, TEXT, 1) == [TEXT]


@pytest.mark.parametrize("name", sorted(set(TEXT_RECIPES) - {"none"}))
def test_a_view_does_not_depend_on_the_number_of_views(name: str) -> None:
    recipe, texts = text_recipe({"name": name}), ["a. b", "c", "d"]
    whole = views(recipe, TEXT, 9, texts=texts)
    assert views(recipe, TEXT, 5, texts=texts) == whole[:5]
    assert views(recipe, TEXT, 9, texts=texts, first_view=4) == whole[4:]


@pytest.mark.parametrize(
    "values",
    [
        {"name": "none"},
        {"name": "mask"},
        {"name": "mask", "share": 0.3, "token": "model"},
        {"name": "mask", "share": 1, "token": '"\\ é 東'},
        {"name": "drop", "share": 0.05},
        {"name": "sentences", "share": 0.25, "shuffle": True},
        {"name": "given"},
    ],
)
def test_a_fingerprint_has_every_parameter(values: dict[str, Any]) -> None:
    recipe = text_recipe(values)
    recorded = recipe.settings()
    assert recorded["text_recipe"] == recipe.identity
    assert len(recorded) == len(recipe.values())
    assert recorded_text_recipe(recorded) == recipe
    assert recorded_text_recipe(recorded | {"text_recipe": f"{recipe.name}-99"}) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "mask", "share": 0.0}, "share is a number from above 0 to 1, found 0.0"),
        ({"name": "mask", "share": "0.1"}, "share is a number, found '0.1'"),
        ({"name": "mask", "token": ""}, 'token is a text such as "[MASK]"'),
        ({"name": "mask", "token": " a"}, 'The recipe "drop" leaves words out'),
        ({"name": "mask", "token": "\ud800"}, "found '\\ud800'"),
        ({"name": "mask", "token": 7}, "token is a string, found 7"),
        ({"name": "drop", "share": 1.5}, "share is a number from above 0 to 1, found 1.5"),
        ({"name": "drop", "token": "x"}, "drop does not have token"),
        ({"name": "sentences", "share": -1}, "share is a number from above 0 to 1, found -1.0"),
        ({"name": "sentences", "shuffle": 1}, "shuffle is true or false, found 1"),
        ({"name": "given", "share": 0.5}, "given does not have share"),
        ({"name": "none", "views": 1}, "none does not have views"),
        ({"name": "masks"}, "name is one of none, mask, drop, sentences, given, found 'masks'"),
    ],
)
def test_wrong_parameters_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        text_recipe(values)
