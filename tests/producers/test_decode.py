"""Untrusted bytes: any damage gives pixels, text or a documented reason, and no other error."""

import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from featurestore.errors import BadSampleError
from producers import decode
from producers.decode import DecodedText

ROOT = Path(__file__).parents[2]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 13, 3), np.uint8))
REASONS = {"empty", "not-an-image", "format", "truncated", "too-large", "broken"}


def encode(kind: str, source: Image.Image = NOISE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    source.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str | None:
    """The reason for refusing an image, or None if it can be decoded."""
    try:
        pixels = decode.image(data)
    except BadSampleError as caught:
        error = caught
    else:
        assert pixels.mode == "RGB"
        assert np.asarray(pixels).shape == (pixels.height, pixels.width, 3)
        return None
    assert error.reason in REASONS
    assert is_detail(error.detail)
    return error.reason


def is_detail(detail: str) -> bool:
    return 0 < len(detail) <= 200 and detail.isprintable()


FILES = {
    "jpeg": encode("JPEG"),
    "progressive": encode("JPEG", progressive=True),
    "png": encode("PNG"),
    "palette": encode(
        "PNG", NOISE.convert("P", palette=Image.Palette.ADAPTIVE, colors=8), transparency=b"\0\x80"
    ),
    "webp": encode("WEBP"),
    "gif": encode("GIF", NOISE.convert("P")),
    "bmp": encode("BMP"),
    "tiff": encode("TIFF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_whole_files_decode_to_what_pillow_makes_of_them(kind: str) -> None:
    data = FILES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode.image(data)), expected)


@pytest.mark.parametrize("kind", FILES)
def test_every_prefix_is_refused_or_decodes(kind: str) -> None:
    data = FILES[kind]
    found = [reason(data[:length]) for length in range(len(data))]
    assert found[0] == "empty"
    assert found[1] == "not-an-image"
    # Only a file that lacks nothing but its end mark may pass.
    assert None not in found[: len(data) - 30]
    # Pillow's GIF decoder does not always tell an early end from damage.
    assert found[len(data) // 2] in ({"truncated", "broken"} if kind == "gif" else {"truncated"})


@pytest.mark.parametrize("kind", FILES)
def test_every_flipped_byte_is_refused_or_decodes(kind: str) -> None:
    data = FILES[kind]
    for position, byte in enumerate(data):
        for mask in (0x01, 0x80, 0xFF):
            reason(data[:position] + bytes([byte ^ mask]) + data[position + 1 :])


def test_a_tag_of_the_wrong_type_is_damage() -> None:
    data = bytearray(encode("TIFF"))
    [directory] = struct.unpack_from("<I", data, 4)
    [entries] = struct.unpack_from("<H", data, directory)
    strip_offsets = next(
        at
        for at in range(directory + 2, directory + 2 + 12 * entries, 12)
        if struct.unpack_from("<H", data, at) == (273,)
    )
    # A fraction where a position is meant: the header's own eight bytes, read as one.
    struct.pack_into("<HHII", data, strip_offsets, 273, 5, 1, 0)
    with pytest.raises(BadSampleError, match="IFDRational") as caught:
        decode.image(bytes(data))
    assert caught.value.reason == "broken"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"\0", "not-an-image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not-an-image"),
        (b"GET / HTTP/1.1\r\n", "not-an-image"),
        (b"\0" * 5000, "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
        (b"%PDF-1.7\n", "format"),
        (b"\xd7\xcd\xc6\x9a" + b"\0" * 40, "format"),
        (b"GRIB\0\0\0\1" + b"\0" * 40, "format"),
        (b"\0\0\1\xb3" + b"\x10" * 40, "format"),
        (b"\x1c\x02\x00\x00\x02\x00\x02" + b"\0" * 40, "format"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "format"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "broken"),
        (b"8BPS\0\1" + b"\0" * 40, "broken"),
        (b"\xff\xd8\xff\xe0", "broken"),
        (b"width 3\nheight 2\n" + b"\0" * 40, "not-an-image"),
        (b'{"plot": ["a"]}', "not-an-image"),
    ],
)
def test_what_is_no_accepted_image(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_no_parser_or_program_beyond_the_accepted_ones_is_started(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        "from featurestore.errors import BadSampleError\n"
        "from producers import decode\n"
        "def refuse(*a, **k): os._exit(9)\n"
        "subprocess.Popen = subprocess.run = subprocess.check_call = os.system = refuse\n"
        "postscript = b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 9 9\\n'\n"
        "iptc = bytes([28, 3, 60, 0, 2, 1, 0, 28, 3, 20, 0, 1, 9, 28, 3, 30, 0, 1, 9])\n"
        "iptc += bytes([28, 3, 120, 0, 1, 5, 28, 8, 10, 0, len(postscript)]) + postscript\n"
        "for data in (postscript, b'<html>', iptc, b'\\xd7\\xcd\\xc6\\x9a', b'GRIB'):\n"
        "    try: decode.image(data); os._exit(8)\n"
        "    except BadSampleError: pass\n"
        "loaded = {m for m in sys.modules if m.startswith('PIL.') and m.endswith('ImagePlugin')}\n"
        "names = ('Eps', 'Iptc', 'Wmf', 'Mpeg', 'GribStub', 'BufrStub', 'Hdf5Stub', 'Pdf')\n"
        "refused = {f'PIL.{name}ImagePlugin' for name in names}\n"
        "assert 'PIL.AvifImagePlugin' in loaded, loaded\n"
        "assert not loaded & refused, loaded\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300, cwd=ROOT)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def webp_claiming(width: int, height: int) -> bytes:
    frames = [NOISE, NOISE.rotate(180)]
    data = bytearray(encode("WEBP", frames[0], save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Asserts that the block's peak memory exceeds the previous use by at most so many bytes."""
    # The kernel's peak begins anew: an earlier test's would hide this one's.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    yield
    assert peak() - before < size


def peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def test_the_peak_is_measured() -> None:
    bytearray(1 << 29)  # what came before does not count
    with pytest.raises(AssertionError), at_most(50 << 20):
        bytearray(60 << 20)
    with at_most(50 << 20):
        bytearray(40 << 20)


@pytest.mark.parametrize(
    "data",
    [
        png_claiming(60_000, 60_000),
        png_claiming(178_956_971, 1),
        png_claiming(2**31 - 1, 2**31 - 1),
        png_claiming(1, 2_000_000),
        webp_claiming(8_388_632, 20),
        FILES["gif"][:6] + struct.pack("<HH", 65_535, 65_535) + FILES["gif"][10:],
        FILES["bmp"][:18] + struct.pack("<ii", 50_000, 50_000) + FILES["bmp"][26:],
    ],
    ids=["png", "strip", "png-max", "thin", "webp", "gif", "bmp"],
)
def test_bombs_are_refused_before_pixels_are_allocated(data: bytes) -> None:
    with at_most(50 << 20):
        assert reason(data) in {"too-large", "not-an-image"}


def test_text_chunks_that_unpack_to_much_are_bounded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 200_000_000, 9))
    data = FILES["png"]
    data = data[:33] + bomb + data[33:]
    with at_most(400 << 20):
        assert reason(data) in {None, "broken"}


def test_the_limit_holds_whatever_another_library_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(png_claiming(60_000, 60_000)) == "too-large"


def test_pillows_warning_below_the_limit_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert NOISE.width * NOISE.height in range(101, 200)
    assert reason(FILES["png"]) is None
    assert not recwarn.list


CONTAINERS = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "GIF", "BMP"),
    "RGB": ("JPEG", "PNG", "TIFF", "BMP", "WEBP"),
    "RGBA": ("PNG", "TIFF", "BMP", "WEBP"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG",),
    "I": ("TIFF",),
    "I;16": ("PNG", "TIFF"),
    "F": ("TIFF",),
}


@pytest.mark.parametrize("mode", CONTAINERS)
def test_modes_become_rgb_as_pillow_converts_them(mode: str) -> None:
    source = NOISE.convert("I").convert(mode) if mode == "I;16" else NOISE.convert(mode)
    for kind in CONTAINERS[mode]:
        data = encode(kind, source)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(decode.image(data)), expected), kind


def test_16_bit_grey_is_clamped_as_in_the_paper() -> None:
    ramp = Image.fromarray(np.array([[0, 100, 255, 256, 65_535]], np.uint16))
    for kind in ("TIFF", "PNG"):
        pixels = np.asarray(decode.image(encode(kind, ramp)))
        assert pixels[0].tolist() == [[value] * 3 for value in (0, 100, 255, 255, 255)]


def test_alpha_is_dropped_not_blended() -> None:
    hidden = NOISE.copy()
    hidden.putalpha(0)
    assert np.array_equal(np.asarray(decode.image(encode("PNG", hidden))), np.asarray(NOISE))


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    for orientation in (*range(10), 255):
        exif[0x0112] = orientation
        assert decode.image(encode("PNG", NOISE, exif=exif)).size == NOISE.size


def test_broken_exif_is_no_failure(recwarn: pytest.WarningsRecorder) -> None:
    assert reason(encode("JPEG", NOISE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")) is None
    assert not recwarn.list


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [NOISE.convert("P"), NOISE.rotate(180).convert("P")]
    for kind in ("GIF", "PNG", "TIFF"):
        data = encode(kind, frames[0], save_all=True, append_images=frames[1:])
        assert np.array_equal(
            np.asarray(decode.image(data)), np.asarray(frames[0].convert("RGB"))
        ), kind


def test_anything_but_pillows_normal_failures_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(KeyError):
        decode.image(FILES["bmp"])


def test_memory_that_runs_out_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(BadSampleError, match="out-of-memory: MemoryError"):
        decode.image(FILES["bmp"])


def test_decoded_pixels_need_no_bytes_any_more() -> None:
    pixels = decode.image(FILES["jpeg"])
    assert type(pixels) is Image.Image


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, ""),
        ({"plot": None}, ""),
        ({"plot": []}, ""),
        ({"plot": 0}, ""),
        ({"plot": ""}, ""),
        ({"plot": False}, ""),
        ({"plot": [""]}, ""),
        ({"plot": "one  two\n"}, "one  two\n"),
        ({"plot": ["one", " two "]}, "one  two "),
        ({"plot": ["a", "", "b"]}, "a  b"),
        ({"plot": "\0 é 🎬 \u202e"}, "\0 é 🎬 \u202e"),
        ({"Plot": "x", "genres": [1]}, ""),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_sound_texts(document: dict[str, Any], text: str, ascii_only: bool, mark: bytes) -> None:
    data = mark + json.dumps(document, ensure_ascii=ascii_only).encode()
    assert decode.text(data) == DecodedText(text)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" ", "not-json"),
        (b"\xef\xbb\xbf", "not-json"),
        (b"{", "not-json"),
        (b"{'plot': 1}", "not-json"),
        (b'{"plot": "a"} x', "not-json"),
        (b'{"plot": "a\nb"}', "not-json"),
        (b"[" * 100_000, "not-json"),
        (b'{"plot":' * 100_000, "not-json"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "not-json"),
        (b'{"plot": "\xff"}', "not-utf8"),
        ('{"plot": "é"}'.encode("latin-1"), "not-utf8"),
        ('{"plot": "a"}'.encode("utf-16"), "not-utf8"),
        (b'{"plot": "\xed\xa0\x80"}', "not-utf8"),
        (b"[]", "not-an-object"),
        (b"null", "not-an-object"),
        (b'"plot"', "not-an-object"),
        (b"NaN", "not-an-object"),
        (b'{"plot": {"a": "b"}}', "plot-type"),
        (b'{"plot": 7}', "plot-type"),
        (b'{"plot": true}', "plot-type"),
        (b'{"plot": NaN}', "plot-type"),
        (b'{"plot": [null, 1, ["x"]]}', "plot-items"),
    ],
)
def test_texts_of_which_nothing_can_be_used(data: bytes, reason: str) -> None:
    decoded = decode.text(data)
    assert (decoded.text, decoded.reason) == ("", reason)
    assert is_detail(decoded.detail)


def test_nan_elsewhere_in_the_document_is_read() -> None:
    assert decode.text(b'{"rating": NaN, "votes": -Infinity, "plot": "a"}') == DecodedText("a")


def test_strings_beside_non_strings_are_kept() -> None:
    decoded = decode.text(b'{"plot": ["a", 1, "b", null]}')
    assert decoded == DecodedText("a b", "plot-items", "2 of 4 are not strings")


@pytest.mark.parametrize(
    ("escaped", "text", "replaced"),
    [
        (r"a\ud800b", "a\ufffdb", 1),
        (r"\udc00", "\ufffd", 1),
        (r"\udc00\ud800", "\ufffd\ufffd", 2),
        (r"\ud83c\udfac \ud83c", "🎬 \ufffd", 1),
    ],
)
def test_lone_surrogates_are_replaced(escaped: str, text: str, replaced: int) -> None:
    for plot in (f'"{escaped}"', f'["{escaped}"]'):
        decoded = decode.text(f'{{"plot": {plot}}}'.encode())
        assert decoded == DecodedText(text, "lone-surrogate", f"{replaced} characters replaced")
        decoded.text.encode()


def test_surrogates_are_replaced_beside_non_strings_too() -> None:
    assert decode.text(rb'{"plot": ["\ud800", 1]}').text == "\ufffd"


def test_a_pair_of_escapes_is_one_character() -> None:
    assert decode.text(rb'{"plot": "\ud83c\udfac"}') == DecodedText("🎬")


@pytest.mark.parametrize("document", ['{"plot": ["a", "é"], "x": {"y": [1, 2.5, null]}}'])
def test_every_damaged_text_gives_text_or_a_reason(document: str) -> None:
    data = document.encode()
    for position in range(len(data)):
        decode.text(data[:position])
        for value in range(256):
            decoded = decode.text(data[:position] + bytes([value]) + data[position + 1 :])
            decoded.text.encode()
