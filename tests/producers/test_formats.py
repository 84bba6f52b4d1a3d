"""Every format that the installed Pillow identifies is decoded as by Pillow, within limits."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from featurestore.errors import BadSampleError
from producers import decode, formats
from tests.producers.test_decode import NOISE, at_most, encode, reason

ROOT = Path(__file__).parents[2]
WIDE = NOISE.resize((16, 16))
RAW = WIDE.tobytes()
GREY = WIDE.convert("L").tobytes()


def big(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def little(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def sun(width: int, height: int) -> bytes:
    return big(0x59A66A95, width, height, 24, len(RAW), 1, 0, 0) + RAW


def photoshop(width: int, height: int) -> bytes:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + big(0, 0, 0) + b"\0\0"
    return head + b"".join(band.tobytes() for band in WIDE.split())


def cursor(width: int, height: int) -> bytes:
    bitmap = encode("DIB", WIDE)
    bitmap = bitmap[:4] + little(width, 2 * height) + bitmap[12:]
    return struct.pack("<HHH", 0, 2, 1) + bytes([16, 16, 0, 0]) + little(0, 0, 22) + bitmap


def dcx(width: int, height: int) -> bytes:
    pcx = encode("PCX", WIDE)
    pcx = pcx[:8] + struct.pack("<HH", width - 1, height - 1) + pcx[12:]
    return little(0x3ADE68B1, 12, 0) + pcx


def fits(width: int, height: int) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": width, "NAXIS2": height}
    lines = [f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()]
    return "".join([*lines, "END".ljust(80)]).ljust(2880).encode() + GREY


def flic(width: int, height: int) -> bytes:
    head = struct.pack("<IHHHHHH", 0, 0xAF12, 1, width, height, 8, 3) + little(70)
    body = struct.pack("<IHH8x", 16 + 6 + len(GREY), 0xF1FA, 1)
    return head.ljust(128, b"\0") + body + struct.pack("<IH", 6 + len(GREY), 16) + GREY


def xpm(width: int, height: int) -> bytes:
    rows = ["ab" * 8] * 16
    text = f'"{width} {height} 2 1",\n"a c #102030",\n"b c #ffeedd",\n'
    body = ",\n".join(f'"{row}"' for row in rows)
    return f"/* XPM */\nstatic char *x[] = {{\n{text}{body}}};\n".encode()


def pixar(width: int, height: int) -> bytes:
    head = bytearray(1024)
    head[:4] = b"\200\350\0\0"
    struct.pack_into("<HH4xHH", head, 416, height, width, 14, 2)
    return bytes(head) + RAW


def brush(width: int, height: int) -> bytes:
    alpha = WIDE.convert("RGBA").tobytes()
    return big(29, 2, width, height, 4) + b"GIMP" + big(9) + b"\0" + alpha


def texture(width: int, height: int) -> bytes:
    return b"FTEX" + little(1, width, height, 1, 1, 1, 32, len(RAW)) + RAW


def mcidas(width: int, height: int) -> bytes:
    words = [0] * 64
    words[1], words[8], words[9], words[10], words[13], words[33] = 4, height, width, 1, 1, 256
    return big(*words) + GREY


def xv(width: int, height: int) -> bytes:
    return f"P7 332\n#END_OF_COMMENTS\n{width} {height} 255\n".encode() + GREY


def photo_cd(width: int, height: int) -> bytes:
    assert (width, height) == (16, 16), "Pillow reads one size"
    return bytes(2048) + b"PCD_".ljust(1539, b"\0") + NOISE.resize((768, 1024)).tobytes()


def imt(width: int, height: int) -> bytes:
    return f"*comment\nwidth {width}\nheight {height}\n".encode() + b"pixel n8\n\x0c" + GREY


CRAFTED = {
    "SUN": sun,
    "PSD": photoshop,
    "CUR": cursor,
    "DCX": dcx,
    "FITS": fits,
    "FLI": flic,
    "XPM": xpm,
    "PIXAR": pixar,
    "GBR": brush,
    "FTEX": texture,
    "MCIDAS": mcidas,
    "XVTHUMB": xv,
    "PCD": photo_cd,
    "IMT": imt,
}
# Where Pillow writes a format: the modes, and where the file holds its size.
WRITTEN = {
    "AVIF": ("RGB", "RGBA", "L"),
    "BLP": ("P",),
    "DDS": ("RGB", "RGBA", "L"),
    "DIB": ("RGB", "L", "1"),
    "ICNS": ("RGBA",),
    "ICO": ("RGB", "RGBA"),
    "IM": ("RGB", "L", "F", "P"),
    "JPEG2000": ("RGB", "RGBA", "L"),
    "MSP": ("1",),
    "PCX": ("RGB", "L", "P"),
    "PPM": ("RGB", "L", "1"),
    "QOI": ("RGB", "RGBA"),
    "SGI": ("RGB", "RGBA", "L"),
    "SPIDER": ("F",),
    "TGA": ("RGB", "RGBA", "L", "P"),
    "XBM": ("1",),
}
FILES = {
    **{
        f"{kind} {mode}": encode(kind, WIDE.convert(mode))
        for kind in WRITTEN
        for mode in WRITTEN[kind]
    },
    **{kind: make(16, 16) for kind, make in CRAFTED.items()},
}


def kind_of(name: str) -> str:
    return name.partition(" ")[0]


def test_every_format_that_pillow_identifies_is_decoded_or_refused_for_a_reason() -> None:
    """Runs in a separate process, because Pillow imports all of its parsers."""
    code = (
        "from PIL import Image; Image.init()\n"
        "from producers import formats\n"
        "print(*(n for n in Image.OPEN if n not in formats.accepted()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, cwd=ROOT, capture_output=True
    )
    assert set(done.stdout.decode().split()) <= set(formats.REFUSED)
    assert {kind_of(name) for name in FILES} | set(formats.COMMON) == set(formats.accepted())


@pytest.mark.parametrize("name", FILES)
def test_an_uncommon_format_is_what_pillow_makes_of_it(name: str) -> None:
    formats.accepted()  # Pillow itself knows them without being asked from here on
    with Image.open(io.BytesIO(FILES[name])) as opened:
        assert opened.format is not None
        assert opened.format.upper() == kind_of(name)
        expected = np.asarray(opened.convert("RGB"))
    assert expected.std() > 1, "a picture"
    assert np.array_equal(np.asarray(decode.image(FILES[name])), expected)
    assert decode.describe(FILES[name]).format.upper() == kind_of(name)


def test_a_name_says_nothing(tmp_path: Path) -> None:
    """An AVIF file that is named .jpg is decoded as by Pillow, and is not black."""
    (tmp_path / "a.jpg").write_bytes(FILES["AVIF RGB"])
    pixels = np.asarray(decode.image((tmp_path / "a.jpg").read_bytes())).astype(int)
    assert np.abs(pixels - np.asarray(WIDE)).mean() < 40


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_an_uncommon_format_is_refused_or_decoded(name: str) -> None:
    data = FILES[name]
    count = 4 if len(data) > 5_000 else 60  # those of 1024 x 1024 pixels take their time
    for length in range(0, len(data), max(1, len(data) // count)):
        reason(data[:length])
    rng = np.random.default_rng(0)
    for position in [*range(min(count, len(data))), *rng.integers(0, len(data), count).tolist()]:
        for mask in (0x01, 0x80, 0xFF):
            flipped = bytes([data[position] ^ mask])
            reason(data[:position] + flipped + data[position + 1 :])


def patched(name: str, at: int, layout: str, *values: int) -> bytes:
    data = bytearray(FILES[name])
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


def avif_claiming(width: int, height: int) -> bytes:
    return patched("AVIF RGB", FILES["AVIF RGB"].index(b"ispe") + 8, ">II", width, height)


def icon_holding(held: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(held), 22) + held


CLAIMS = {
    **{
        kind: make(50_000, 50_000)
        for kind, make in CRAFTED.items()
        if kind != "PCD"  # always of 768 x 512
    },
    "AVIF": avif_claiming(16_000, 16_000),
    "AVIF, more": avif_claiming(60_000, 60_000),
    "BLP": patched("BLP P", 12, "<II", 50_000, 50_000),
    "DDS": patched("DDS RGB", 12, "<II", 50_000, 50_000),
    "DIB": patched("DIB RGB", 4, "<ii", 50_000, 50_000),
    "IM": FILES["IM RGB"].replace(b"(x*y): 16*16", b"(x*y): 60000*60000"),
    "JPEG2000": patched(
        "JPEG2000 RGB", FILES["JPEG2000 RGB"].index(b"ihdr") + 4, ">II", 50_000, 50_000
    ),
    "MSP": patched("MSP 1", 4, "<HH", 60_000, 60_000),
    "PCX": patched("PCX RGB", 8, "<HH", 60_000, 60_000),
    "PPM": FILES["PPM RGB"].replace(b"16 16", b"60000 60000"),
    "QOI": patched("QOI RGB", 4, ">II", 60_000, 60_000),
    "SGI": patched("SGI RGB", 6, ">HH", 60_000, 60_000),
    "TGA": patched("TGA RGB", 12, "<HH", 60_000, 60_000),
    "XBM": FILES["XBM 1"].replace(b" 16\n", b" 60000\n"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_limits_hold_before_pixels_are_allocated(name: str) -> None:
    formats.accepted()
    reason(FILES["AVIF RGB"])  # the first call of a library allocates memory
    with at_most(50 << 20):
        assert reason(CLAIMS[name]) in {"too-large", "broken", "not-an-image"}


def test_what_an_icon_holds_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image in the icon is larger than claimed, and Pillow's limit may be disabled."""
    from tests.producers.test_decode import png_claiming

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with at_most(50 << 20):
        assert reason(icon_holding(png_claiming(60_000, 60_000))) == "too-large"
    assert Image.MAX_IMAGE_PIXELS is None
    assert reason(icon_holding(encode("PNG", WIDE))) is None


def test_formats_that_were_not_safe_are_refused_from_an_older_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, refused in (("11.3.0", {"FITS", "PSD"}), ("12.1.1", {"FITS"}), ("12.2.0", set())):
        monkeypatch.setattr(PIL, "__version__", version)
        found = {name for name in ("FITS", "PSD", "AVIF") if formats.why_refused(name) is not None}
        assert found == refused, version


def test_a_pillow_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import AvifImagePlugin, features

    formats.accepted()
    check = features.check
    monkeypatch.setattr(features, "check", lambda name: name != "avif" and check(name))
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    formats.accepted.cache_clear()
    try:
        with pytest.raises(BadSampleError, match="format: AVIF: this Pillow was built without"):
            decode.image(FILES["AVIF RGB"])
    finally:
        formats.accepted.cache_clear()
