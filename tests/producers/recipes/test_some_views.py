"""Only the last views of a sample are computed, as for a store that gets more views."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from producers import worker
from producers.recipes.images import random_crops
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts import hiding
from producers.recipes.texts.hiding import Mask
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.slots import Ring, SlotArrays
from producers.sources.pairs import scan
from producers.sources.scan import Scan
from producers.worker import Job, Producer
from tests.producers.pictures import photo
from tests.producers.recipes.test_tokens import unigram
from tests.producers.views import text_views

VIEWS = 7
CLIP, BLIP, SMALL = ImageSpec(64, 64), ImageSpec(64, None), ImageSpec(31, 31)
PLOT = "The castle of the king, and his men -- " * 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """An ordinary sample, an empty one, a strip without a possible CLIP view 0, and no image."""
    folder = tmp_path_factory.mktemp("data")
    posters = [photo("china", (120, 80)), photo("coffee", (40, 60)), Image.new("RGB", (1, 65_000))]
    for number, (poster, plot) in enumerate(zip(posters, (PLOT, " \n", "one  word "), strict=True)):
        poster.save(folder / f"{number}.jpg", quality=95)
        (folder / f"{number}.json").write_text(json.dumps({"plot": plot}))
    (folder / "3.jpg").write_bytes(b"no image")
    (folder / "3.json").write_text('{"plot": ')
    return scan(folder)


@cache
def text_specs() -> tuple[TextSpec, TextSpec]:
    """The specifications of two tokenizers; the second one is trained here."""
    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "MASK": 1, "the": 2, "king": 3}, "[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return TextSpec(whole.to_str(), 39), TextSpec(unigram().to_str(), 24)


def job(found: Scan, first_view: int) -> Job:
    images = (CLIP, BLIP, SMALL)
    return Job(found.places.source, VIEWS, 123, images, text_specs(), 1, first_view=first_view)


def one_slot(planned: Job) -> SlotArrays:
    """A slot whose memory lives as long as its arrays."""
    ring = Ring(planned.layout, 1)
    [slot] = ring.slots
    ring.close()
    return slot


def produce(found: Scan, first_view: int) -> list[tuple[SlotArrays, dict[str, Any]]]:
    """Every sample's arrays and report."""
    planned, made = job(found, first_view), []
    producer = Producer(planned)
    for sample in found.samples:
        slot = one_slot(planned)
        made.append((slot, producer.produce(sample, slot, {})))
    return made


@pytest.mark.parametrize("first_view", [1, 2, 5, VIEWS - 1])
def test_the_last_views_are_those_of_all(found: Scan, first_view: int) -> None:
    for (whole, expected), (slot, report) in zip(
        produce(found, 0), produce(found, first_view), strict=True
    ):
        assert (slot.views, slot.clean) == (range(first_view, VIEWS), {})
        for spec in (CLIP, BLIP, SMALL):
            shape = (VIEWS - first_view, spec.size, spec.size, 3)
            assert slot.augmented[spec].shape == shape
            np.testing.assert_array_equal(
                slot.augmented[spec], whole.augmented[spec][first_view - 1 :]
            )
        for k in range(2):
            np.testing.assert_array_equal(slot.ids[k], whole.ids[k][first_view:])
            np.testing.assert_array_equal(slot.lengths[k], whole.lengths[k][first_view:])
        assert report | {"cut": 0} == expected | {"cut": 0}


def test_what_cannot_be_used_is_the_same_without_the_clean_view(found: Scan) -> None:
    """A strip without a possible CLIP view 0 has no views at all, whichever are requested."""
    bad = [report["bad"] for _, report in produce(found, 3)]
    assert [[reason for _, reason, _ in of] for of in bad[:2]] == [[], []]
    assert [reason for _, reason, _ in bad[2]] == ["too-large"]
    assert len(bad[3]) == 2
    slot, _ = produce(found, 3)[2]
    assert not slot.augmented[CLIP].any()


@pytest.mark.parametrize("first_view", [0, 1, 4])
def test_texts_that_are_cut_are_counted_among_those_that_are_made(
    found: Scan, first_view: int
) -> None:
    encoders = [TokenEncoder(spec) for spec in job(found, 0).texts]
    reports = [report for _, report in produce(found, first_view)]
    texts = text_views(PLOT, 123, 0, VIEWS).texts()
    expected = [
        sum(encoder.count(text) > encoder.spec.max_length for text in texts[first_view:])
        for encoder in encoders
    ]
    assert reports[0]["cut"] == expected
    assert 0 < expected[0] < VIEWS - first_view  # some are, and some are not


@pytest.mark.parametrize("first_view", [0, 1, 4])
def test_no_other_view_is_made(
    found: Scan, first_view: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        honest = getattr(module, name)

        def count(*arguments: Any) -> Any:
            made[name] += 1
            return honest(*arguments)

        monkeypatch.setattr(module, name, count)

    planned = job(found, first_view)
    producer, slot = Producer(planned), one_slot(planned)
    counted(random_crops, "apply")
    counted(worker, "clean_view")
    counted(hiding, "hidden_words")
    producer.produce(found.samples[0], slot, {})
    augmented = VIEWS - max(first_view, 1)
    clean = 0 if first_view else 3
    assert made == Counter(apply=2 * augmented, clean_view=clean, hidden_words=augmented)


@pytest.mark.parametrize("first_view", [0, 1, 3])
def test_a_part_of_the_views_is_found_wherever_they_begin(found: Scan, first_view: int) -> None:
    whole, _ = produce(found, 0)[0]
    slot, _ = produce(found, first_view)[0]
    for start in range(first_view, VIEWS):
        for stop in range(start + 1, VIEWS + 1):
            first, others = slot.images(CLIP, range(start, stop))
            rows = [whole.clean[CLIP], *whole.augmented[CLIP]]
            np.testing.assert_array_equal([first, *others], rows[start:stop])
            ids, lengths = slot.texts(1, range(start, stop))
            np.testing.assert_array_equal(ids, whole.ids[1][start:stop])
            np.testing.assert_array_equal(lengths, whole.lengths[1][start:stop])


@pytest.mark.parametrize("plot", [["a", 1], ["\ud800"]])
def test_an_input_with_two_faults_is_one_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plot: list[Any]
) -> None:
    """The worse problem counts, because no text is left, and its detail names the other."""
    photo("china", (40, 30)).save(tmp_path / "0.jpg")
    (tmp_path / "0.json").write_text(json.dumps({"plot": plot}))
    found = scan(tmp_path)
    planned = job(found, 0)
    draw = Mask.draw

    def short(recipe: Mask, text: str, *rest: Any, **named: Any) -> Any:
        if text:
            raise MemoryError
        return draw(recipe, text, *rest, **named)

    producer = Producer(planned)
    monkeypatch.setattr(Mask, "draw", short)
    slot = one_slot(planned)
    [[modality, reason, detail]] = producer.produce(found.samples[0], slot, {})["bad"]
    assert (modality, reason) == ("text", "out-of-memory")
    assert "GiB" in detail
    assert ("plot-items: 1 of 2" if len(plot) == 2 else "lone-surrogate: 1 char") in detail
