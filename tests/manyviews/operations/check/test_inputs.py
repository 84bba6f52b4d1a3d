"""The findings about a data folder, compared with the files that were put into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from featurestore.records import Sample
from manyviews.operations.check import collection, duplicates, inputs
from manyviews.operations.check.duplicates import duplicate_inputs
from manyviews.operations.check.findings import Group, spread
from manyviews.operations.check.reading import Look, Reading, evenly, look_at, read
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from producers.sources.scan import Scan
from tests.conftest import ROOT
from tests.manyviews.operations.conftest import GOOD


@pytest.fixture(scope="module")
def found(messy: Path) -> Scan:
    return scan(messy)


@pytest.fixture(scope="module")
def looks(found: Scan) -> list[Look]:
    return read(Reading(found.places.source), found.samples, 2, 60.0)


def level_of(group: Group, label: str) -> str:
    (line,) = [x for x in group.lines if x.label == label]
    return line.level


# Reading ----------------------------------------------------------------------------------------


def test_child_processes_return_what_reading_in_this_process_does(
    found: Scan, looks: list[Look]
) -> None:
    reading = Reading(found.places.source)
    assert looks == [look_at(reading, [], sample) for sample in found.samples]


def test_evenly_spaces_its_samples_deterministically() -> None:
    samples = [Sample(i, str(i), "", "") for i in range(1000)]
    assert [s.index for s in evenly(samples, 4)] == [0, 250, 500, 750]
    assert evenly(samples, 5000) == samples
    assert [s.index for s in evenly(samples, 999)] == sorted(
        {s.index for s in evenly(samples, 999)}
    )


MISBEHAVE = """
import os, signal, time
import numpy
from producers import decode

describe, document = decode.describe, decode.document


def image(data):
    return act(data) or describe(data)


def text(data):
    return act(data) or document(data)


def act(data):
    if b"<once>" in data and not os.path.exists(os.environ["MARK"]):
        open(os.environ["MARK"], "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if b"<exit>" in data:
        os._exit(9)
    if b"<loop>" in data:
        print("reading for ever", flush=True)
        time.sleep(1000)
    if b"<bomb>" in data:
        held = [numpy.empty(1 << 28, "u1") for _ in range(256)]


decode.describe, decode.document = image, text
"""


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the reading processes crash or block at marker words in a file."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(MISBEHAVE)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))


@pytest.mark.usefixtures("misbehaving")
def test_files_that_end_block_or_fill_a_process_are_named_and_the_rest_is_read(
    found: Scan, looks: list[Look], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(found.path, folder, symlinks=True)
    samples = found.samples
    marks = {
        (3, "image"): "<exit>",
        (5, "text"): "<exit>",
        (6, "text"): "<loop>",
        (7, "image"): "<once>",
        (8, "image"): "<bomb>",
        (9, "text"): "<bomb>",
    }
    for (index, kind), mark in marks.items():
        sample = samples[index]
        file = folder / str(sample.image_name if kind == "image" else sample.text_name)
        if mark == "<once>":  # after the end of a JPEG, where it does not change the image
            file.write_bytes(file.read_bytes() + mark.encode())
        else:
            file.write_bytes(mark.encode())
    made = read(Reading(pair_source(folder)), samples, 2, 3.0)
    killed = ("killed", "the decoder was ended by exit status 9, 2 times")
    bad = {
        (look.index, kind): why
        for look in made
        for kind, why in (("image", look.image_bad), ("text", look.text_bad))
        if (look.index, kind) in marks
    }
    assert bad == {
        (3, "image"): killed,
        (5, "text"): killed,
        (6, "text"): ("timeout", "no result within 3 s, 2 times"),
        (7, "image"): None,
        (8, "image"): ("out-of-memory", "more than 4 GiB for one sample"),
        (9, "text"): ("out-of-memory", "more than 4 GiB for one sample"),
    }
    assert (tmp_path / "mark").exists()
    # All other files are read, and the other file of these samples too.
    assert [x for x in made if x.index not in (3, 5, 6, 8, 9)] == [
        x for x in looks if x.index not in (3, 5, 6, 8, 9)
    ]
    assert [replace(made[i], image_bad=None) for i in (3, 8)] == [
        replace(looks[i], image=None) for i in (3, 8)
    ]
    assert [made[i].image for i in (5, 6, 9)] == [looks[i].image for i in (5, 6, 9)]


def test_a_bad_text_has_the_tokens_of_the_empty_text(found: Scan) -> None:
    """Every sample has a token count, also one whose text is bad."""
    spec = TextSpec(Tokenizer(models.WordLevel({"w": 0}, "w")).to_str(), max_length=8)
    reading = Reading(found.places.source, images=False, texts=(spec,))
    made = read(reading, found.samples, 1, 60.0)
    assert made == [look_at(reading, [TokenEncoder(spec)], s) for s in found.samples]
    assert {len(look.tokens) for look in made} == {1}
    assert {look.image for look in made} == {None}


# The folder -------------------------------------------------------------------------------------


def test_the_folder(found: Scan) -> None:
    group = inputs.data_group(found)
    assert group.facts["samples"] == GOOD + 11
    assert group.facts["unmatched_images"] == ["alone.jpg"]
    assert group.facts["unmatched_texts"] == ["lonely.json"]
    labels = ("pairs", "posters alone", "synopses alone", "same stem twice", "left out")
    levels = [level_of(group, label) for label in labels]
    assert levels == ["ok", "warning", "warning", "warning", "warning"]
    assert "'folder.jpg'" in group.lines[-1].text
    assert "1 subfolder: 'folder.jpg'" in group.lines[-1].advice
    assert all(line.advice for line in group.lines if line.level != "ok")


def test_equal_files_are_found_whatever_their_names(found: Scan) -> None:
    stems = [[s.stem for s in group] for group in duplicate_inputs(found, "image")]
    assert stems == [["good01", "twin"]]
    assert [[s.stem for s in group] for group in duplicate_inputs(found, "text")] == [
        ["twin", "twin2"]
    ]


def test_equal_posters_in_two_parts_are_reported(found: Scan, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for test, said in ((["twin"], "1 group is in two parts"), (["small"], "in 1 group, first")):
        path.write_text(json.dumps({"train": ["good01"], "val": [], "test": test}))
        group, split = inputs.split_group(path, found)
        duplicates.duplicates_into(group, found, split)
        (line,) = [x for x in group.lines if x.label == "equal posters"]
        assert said in line.text


# Posters and synopses ---------------------------------------------------------------------------


def test_unusable_and_odd_posters(found: Scan, looks: list[Look]) -> None:
    facts = inputs.images_group(looks, found.samples).facts
    assert {stem: reason for stem, reason, _ in facts["bad"]} == {
        "cut": "truncated",
        "nothing": "empty",
    }
    assert facts["odd"] == {
        "small": ["small"],
        "long": ["long"],
        "not RGB": ["grey"],
        "turned": ["turned"],
        "not JPEG": ["png"],
    }
    assert facts["modes"] == {"RGB": GOOD + 8, "L": 1}
    assert facts["formats"] == {"JPEG": GOOD + 8, "PNG": 1}
    assert facts["width"] == {"min": 40, "median": 200, "p95": 200, "max": 200}


def test_unusable_inputs_are_errors_if_a_build_stops_at_them(
    found: Scan, looks: list[Look]
) -> None:
    for fatal, level in ((False, "warning"), (True, "error")):
        posters = inputs.images_group(looks, found.samples, fatal=fatal)
        texts = inputs.texts_group(looks, found.samples, {}, fatal=fatal)
        assert level_of(posters, "unusable") == level_of(texts, "unusable") == level
        (line,) = [x for x in posters.lines if x.label == "unusable"]
        assert line.text == "2: 'cut' truncated, 'nothing' empty (empty 1, truncated 1)"


def test_a_single_reason_is_named_once(found: Scan, looks: list[Look]) -> None:
    truncated = [look for look in looks if look.image_bad and look.image_bad[0] == "truncated"]
    group = inputs.images_group(truncated, found.samples)
    (line,) = [x for x in group.lines if x.label == "unusable"]
    assert line.text == "1: 'cut' (truncated)"


def test_synopses(found: Scan, looks: list[Look]) -> None:
    facts = inputs.texts_group(looks, found.samples, {}).facts
    assert [(stem, reason) for stem, reason, _ in facts["bad"]] == [("broken", "not-json")]
    assert facts["empty"] == ["noplot"]
    words = []
    for sample in found.samples:
        text = (found.path / str(sample.text_name)).read_text()
        words.append(0 if text == "{" else len(json.loads(text).get("plot", "").split()))
    assert facts["words"]["max"] == max(words)
    assert facts["words"]["median"] == sorted(words)[(len(words) - 1) // 2]


def test_genres(found: Scan, looks: list[Look]) -> None:
    group = collection.genres_group(looks, found.samples)
    counts = {name: count for name, count in group.facts["genres"].items() if count}
    assert counts == {"Comedy": 9, "Drama": GOOD + 1, "War": GOOD}
    assert group.facts["unknown"] == {"reality-tv": 1}
    assert group.facts["without"] == ["broken"]


def test_a_report_on_a_part_of_the_samples_says_so(found: Scan, looks: list[Look]) -> None:
    group = inputs.images_group(looks[:5], found.samples)
    assert group.lines[0].text == f"5 of {len(looks)}, evenly spaced; --full reads all"
    assert "never" not in [x.label for x in collection.genres_group(looks[:5], found.samples).lines]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {}),
        ([7], {"min": 7, "median": 7, "p95": 7, "max": 7}),
        (range(1, 101), {"min": 1, "median": 50, "p95": 95, "max": 100}),
    ],
)
def test_spread(values: Sequence[int], expected: dict[str, int]) -> None:
    assert spread(values) == expected


# Splits -----------------------------------------------------------------------------------------


def test_every_error_of_a_split_is_listed(found: Scan, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    stems = [s.stem for s in found.samples]
    parts = {"train": stems[:10], "dev": [*stems[9:12], "who"], "test": [*stems[12:20], stems[0]]}
    path.write_text(json.dumps(parts))
    group, _ = inputs.split_group(path, found)
    assert group.facts["parts"] == {"train": 10, "val": 3, "test": 9}
    assert group.facts["in_none"] == stems[20:]
    assert group.facts["overlap"] == {"train, val": [stems[9]], "train, test": [stems[0]]}
    assert group.facts["unknown"] == {"dev": ["who"]}
    labels = ("unknown in dev", "both in train, val", "both in train, test", "in no part")
    assert [level_of(group, label) for label in labels] == ["error"] * 3 + ["warning"]


def test_an_unreadable_split_is_an_error(found: Scan, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": []}')
    group, split = inputs.split_group(tmp_path / "split.json", found)
    assert split is None
    assert level_of(group, "file") == "error"


def test_of_a_large_collection_a_part_is_compared_unless_all_is_asked_for(
    found: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "COMPARED", 3)
    some, every = Group("data"), Group("data")
    duplicates.duplicates_into(some, found, None)
    duplicates.duplicates_into(every, found, None, full=True)
    assert some.facts["duplicate_posters"] == []
    assert [line.text for line in some.lines] == ["none among 3 of them, by SHA-256"] * 2
    assert every.facts["duplicate_posters"] == [["good01", "twin"]]
