"""Hostile posters, synopses and names, in whole builds and one by one.

``tests/producers`` holds prefixes, flipped bytes, bombs and odd modes against ``decode`` alone.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from consumers.build import build
from featurestore.errors import BadSampleError
from featurestore.records import Sample
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from producers import decode
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts.tokens import TextSpec
from producers.slots import Ring
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from producers.worker import Job, Producer
from tests.conftest import tree_digest
from tests.faults.fakes import config, loaded, make, tokenizer
from tests.faults.harness import COUNTS

VIEWS = 4


def encode(kind: str, source: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    source.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str | None:
    try:
        pixels = decode.image(data)
    except BadSampleError as error:
        return error.reason
    assert pixels.mode == "RGB"
    return None


RED = Image.new("RGB", (8, 6), (200, 10, 30))

# Posters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def producer() -> Any:
    """A producer in this process, with its slot."""
    texts = (TextSpec(tokenizer(), 32),)
    job = Job(
        {"kind": "pairs", "root": "/nowhere"},
        VIEWS,
        123,
        (ImageSpec(16, 16), ImageSpec(16, None)),
        texts,
        2,
    )
    ring = Ring(job.layout, job.slots)
    yield lambda folder: (Producer(_moved(job, folder)), ring.slots[0])
    ring.close()


def _moved(job: Job, folder: Path) -> Job:
    return Job(pair_source(folder), job.views, job.seed, job.images, job.texts, job.slots)


POSTERS: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", "empty"),
    "one byte": (b"\xff", "not-an-image"),
    "a web page": (b"<!DOCTYPE html><title>404</title>", "not-an-image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
    "PDF": (b"%PDF-1.7\n", "format"),
    "HEIC": (b"\0\0\0\x20ftypheic" + bytes(40), "format"),
    "metafile": (b"\xd7\xcd\xc6\x9a" + bytes(40), "format"),
    "PNG": (encode("PNG", RED), None),
    "WEBP": (encode("WEBP", RED, lossless=True), None),
    "AVIF": (encode("AVIF", RED, quality=100, subsampling="4:4:4"), None),
    "JPEG 2000": (encode("JPEG2000", RED), None),
    "Targa": (encode("TGA", RED), None),
    "cut": (encode("JPEG", RED)[:-40], "truncated"),
}


def test_each_kind_of_poster_in_one_folder(producer: Any, tmp_path: Path) -> None:
    """All are named .jpg: the format is detected from the bytes, and bad ones become black."""
    for i, (data, _) in enumerate(POSTERS.values()):
        (tmp_path / f"{i:02}.jpg").write_bytes(data)
        (tmp_path / f"{i:02}.json").write_text('{"plot": "w1 w2"}')
    worker, slot = producer(tmp_path)
    found = {}
    for sample, name in zip(scan(tmp_path).samples, POSTERS, strict=True):
        report = worker.produce(sample, slot, {})
        found[name] = next((why for kind, why, _ in report["bad"] if kind == "image"), None)
        views = [*slot.clean.values(), *slot.augmented.values()]
        assert all(v.dtype == np.uint8 and v.flags.c_contiguous for v in views)
        assert slot.augmented[ImageSpec(16, None)].shape == (VIEWS - 1, 16, 16, 3)
        assert any(v.any() for v in views) == (found[name] is None), name
        if found[name] is None:  # a plain colour stays plain, whatever is cut out of it
            np.testing.assert_array_equal(slot.clean[ImageSpec(16, None)], _plain(200, 10, 30))
    assert found == {name: why for name, (_, why) in POSTERS.items()}
    COUNTS["bad poster"] += sum(why is not None for why in found.values())


def _plain(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (16, 16, 3))


def solid(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def jpeg_with_transform(source: Image.Image, transform: int) -> bytes:
    """A JPEG whose Adobe marker says what its components are: 0 as they are, 2 YCCK."""
    data = bytearray(encode("JPEG", source, quality=100))
    at = data.index(b"Adobe")
    assert data[at + 11] in (0, 2)
    data[at + 11] = transform
    return bytes(data)


# Stored: what each kind is as RGB. Four inks are inverted in Adobe's files; LAB is Pillow's own.
COLOURS: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "CMYK, no ink": (jpeg_with_transform(solid("CMYK", (0, 0, 0, 0)), 0), (255, 255, 255)),
    "CMYK, cyan": (jpeg_with_transform(solid("CMYK", (255, 0, 0, 0)), 0), (0, 255, 255)),
    "CMYK, black": (jpeg_with_transform(solid("CMYK", (0, 0, 0, 255)), 0), (0, 0, 0)),
    "YCCK": (jpeg_with_transform(solid("CMYK", (127, 127, 127, 0)), 2), (128, 128, 128)),
    "grey and alpha": (encode("PNG", solid("LA", (77, 0))), (77, 77, 77)),
    "one bit": (encode("PNG", solid("1", 1)), (255, 255, 255)),
    "palette": (encode("GIF", solid("P", 0)), (0, 0, 0)),
    "alpha dropped": (encode("PNG", solid("RGBA", (9, 8, 7, 0))), (9, 8, 7)),
    "16 bits": (encode("PNG", Image.fromarray(np.full((9, 9), 200, np.uint16))), (200,) * 3),
    "float": (encode("TIFF", Image.fromarray(np.full((9, 9), 42.5, np.float32))), (42,) * 3),
}


@pytest.mark.parametrize("name", COLOURS)
def test_a_plain_colour_of_each_kind(name: str) -> None:
    data, expected = COLOURS[name]
    pixels = np.asarray(decode.image(data)).astype(int)
    assert np.abs(pixels - expected).max() <= 2, pixels[0, 0]


def test_lab_is_refused_or_rgb_and_never_a_crash() -> None:
    assert reason(encode("TIFF", solid("LAB", (128, 128, 128)))) in (None, "broken")


def odd_images() -> dict[str, bytes]:
    frames = [solid("RGB", (i, 0, 0)) for i in range(3)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = solid("L", 7)
    jpeg = encode("JPEG", RED)
    arithmetic = jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1)
    gif = bytearray(encode("GIF", solid("P", 0)))
    no_width = bytes(gif[:6] + struct.pack("<HH", 0, 16) + gif[10:])
    return {
        "1 x 1": encode("PNG", Image.new("RGB", (1, 1))),
        "1 x 10,000": encode("PNG", Image.new("RGB", (1, 10_000))),
        "a profile": encode("PNG", RED, icc_profile=profile),
        "a profile of zeros": encode("PNG", RED, icc_profile=bytes(100_000)),
        "progressive grey": encode("JPEG", grey, progressive=True),
        "arithmetic": arithmetic,
        "no width": no_width,
        "many frames": encode("GIF", frames[0], save_all=True, append_images=frames * 60),
        "webp frames": encode(
            "WEBP", frames[0], save_all=True, append_images=frames, lossless=True
        ),
        "pages": encode("TIFF", frames[0], save_all=True, append_images=frames),
    }


def test_odd_but_legal_images() -> None:
    """Decoded or refused with a reason; of several frames only the first is decoded."""
    found = {}
    for name, data in odd_images().items():
        start = time.process_time()
        found[name] = reason(data)
        assert time.process_time() - start < 5, name
    assert found.pop("arithmetic") in (None, "broken", "truncated")
    assert found.pop("no width") in (None, "broken", "not-an-image", "truncated")
    assert set(found.values()) == {None}
    for name in ("many frames", "pages"):
        assert np.asarray(decode.image(odd_images()[name])).max() == 0, name


def test_a_profile_that_unpacks_to_much_is_bounded() -> None:
    profile = encode("PNG", RED, icc_profile=bytes(80 << 20))
    assert len(profile) < 1 << 20
    assert reason(profile) in (None, "broken", "too-large")
    COUNTS["bomb"] += 1


IMAGES = os.environ.get("MANYVIEWS_PILLOW_IMAGES", "")


@pytest.mark.skipif(
    not IMAGES, reason="MANYVIEWS_PILLOW_IMAGES names no folder: Tests/images of Pillow's sources"
)
def test_the_whole_folder_of_pillows_own_test_images() -> None:
    """Accepted, or refused with a reason; any other exception is a defect."""
    found: dict[str | None, int] = {}
    for path in sorted(p for p in Path(IMAGES).rglob("*") if p.is_file()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            why = reason(path.read_bytes())
        found[why] = found.get(why, 0) + 1
    print(found)
    assert found[None] > 100
    assert sum(found.values()) > 500
    COUNTS["Pillow's images"] += sum(found.values())


# Synopses --------------------------------------------------------------------------------------

MEGA = 1 << 20
TEXTS: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", "empty"),
    "blanks": (b'{"plot": "  \\t  "}', None),
    "byte order mark": (b'\xef\xbb\xbf{"plot": "w1 w2"}', None),
    "NUL": (b'{"plot": "w1\\u0000w2 w3"}', None),
    "not UTF-8": (b'{"plot": "\xff\xfe"}', "not-utf8"),
    "UTF-16": ('{"plot": "w1"}'.encode("utf-16"), "not-utf8"),
    "lone surrogate": (b'{"plot": "w1 \\ud800"}', "lone-surrogate"),
    "100,000 words": (b'{"plot": "' + b"w1 " * 100_000 + b'"}', None),
    "one word of 1 MB": (b'{"plot": "' + b"w" * MEGA + b'"}', None),
    "1e6 newlines": (b'{"plot": "' + b"\\n" * 1_000_000 + b'"}', None),
    "17 MB": (b'{"plot": "' + b"w" * (17 * MEGA) + b'"}', "too-large"),
    "right to left": ('{"plot": "\u202ew1 w2 \u0634\u0631"}'.encode(), None),
    "joined emoji": ('{"plot": "w1 \U0001f469\u200d\U0001f680 w2"}'.encode(), None),
    "composed": (json.dumps({"plot": unicodedata.normalize("NFC", "w1 é")}).encode(), None),
    "decomposed": (json.dumps({"plot": unicodedata.normalize("NFD", "w1 é")}).encode(), None),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "data"
    folder.mkdir()
    for i, (data, _) in enumerate(TEXTS.values()):
        (folder / f"{i:02}.jpg").write_bytes(b"")
        (folder / f"{i:02}.json").write_bytes(data)
    return folder


def test_each_kind_of_synopsis_in_one_build(texts: Path, tmp_path: Path) -> None:
    """Read whole or refused with a reason, cut by the tokenizer and counted, the same each time."""
    store = tmp_path / "store"
    report = make(texts, store)
    assert {(b.index, b.reason) for b in report.bad} == {
        (i, why) for i, (_, why) in enumerate(TEXTS.values()) if why
    }
    COUNTS["bad synopsis"] += len(report.bad)
    # Only the text of 100,000 words has more than 32 tokens, in each of its views.
    assert dict(report.truncated) == {"clip_text": VIEWS, "blip2_text": VIEWS}
    words = [record.words for record in FeatureStore(store).records]
    assert words == [0, 0, 2, 2, 0, 0, 2, 100_000, 1, 0, 0, 3, 3, 2, 2]
    assert verify(store).findings == []
    again = tmp_path / "again"
    with loaded():
        build(config(texts, again, producers=2))
    assert tree_digest(again) == tree_digest(store)


def test_time_grows_with_the_length_of_a_text_and_not_faster(producer: Any, tmp_path: Path) -> None:
    """Ten times the text takes about ten times as long, words, one word, or newlines alike."""
    worker, slot = producer(tmp_path)
    for i, unit in enumerate((b"w1 ", b"w", b"\\n")):
        seconds = []
        for size in (30_000, 300_000):
            name = f"{i}-{size}"
            body = unit * (size // len(unit))
            (tmp_path / f"{name}.json").write_bytes(b'{"plot": "' + body + b'"}')
            (tmp_path / f"{name}.jpg").write_bytes(b"")
            sample = Sample(0, name, f"{name}.jpg", f"{name}.json")
            start = time.process_time()
            worker.produce(sample, slot, {"image": "skipped: for this test"})
            seconds.append(time.process_time() - start)
        assert seconds[1] < 60 * max(seconds[0], 0.01), (unit, seconds)


# Names -----------------------------------------------------------------------------------------

NAMES = ["zarr.json", "c", "%2e%2e", "a;rm -rf", "con", "x" * 240, "A", "a", "é", "e\u0301"]
NAMES += ["a\nb", os.fsdecode(b"\xff"), "-", "..a", " ", "ledger.jsonl", "$(touch x)"]


def test_names_are_values_and_nothing_is_written_outside_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "data"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / f"{name}.jpg").write_bytes(b"")
        (folder / f"{name}.json").write_text('{"plot": "w1"}')
    # Alone, of another case, of a suffix that is not ours, and twice under one stem.
    for name in ("alone.jpg", "ALONE.json", "b.JPG", "b.json", "b.jpeg", "other.png", "other.json"):
        (folder / name).write_bytes(b'{"plot": "w1"}')
    before = tree_digest(tmp_path)
    seen: dict[str, Any] = {}
    with loaded():
        build(
            config(folder, tmp_path / "work" / "store"),
            [lambda event, facts: seen.update({event: facts})],
        )
    after = tree_digest(tmp_path)
    assert {n: d for n, d in after.items() if not n.startswith("work/store")} == before
    used = sorted([n for n in NAMES if not n.startswith(".")] + ["b"])
    assert FeatureStore(tmp_path / "work" / "store").stems == used
    found = seen["scanned"]
    assert found["unmatched_images"] == ["alone.jpg"]
    assert found["unmatched_texts"] == ["ALONE.json", "other.json"]
    assert found["alike"] == [["alone.jpg", "ALONE.json", "case"]]
    assert [list(pair) for pair in found["left_out"]] == [
        ["..a.jpg", "dotfile"],
        ["..a.json", "dotfile"],
        ["b.JPG", "shadowed"],
        ["other.png", "suffix"],
    ]
