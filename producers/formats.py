"""The image formats of the installed Pillow that are decoded, and those that are refused.

A file is offered to every parser that is safe: one that starts no other program, needs no package
that manyviews does not ask for, and says how many pixels there are before it makes any.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import PIL

# The parsers of the formats that posters have are imported here, once for all files of a process.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
    features,
)

COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

_OTHER_PROGRAM = "Pillow leaves its pixels to another program"
_OTHER_PACKAGE = "Pillow reads it with a package that is not asked for"
# Format: the module that reads it, and why it is never offered a file.
REFUSED: Mapping[str, tuple[str, str]] = {
    "EPS": ("EpsImagePlugin", "Pillow starts Ghostscript for it"),
    "IPTC": ("IptcImagePlugin", "Pillow opens what is inside with every parser it has"),
    "BUFR": ("BufrStubImagePlugin", _OTHER_PROGRAM),
    "GRIB": ("GribStubImagePlugin", _OTHER_PROGRAM),
    "HDF5": ("Hdf5StubImagePlugin", _OTHER_PROGRAM),
    "WMF": ("WmfImagePlugin", _OTHER_PROGRAM),
    "MPEG": ("MpegImagePlugin", "a video, of which Pillow decodes nothing"),
    "FPX": ("FpxImagePlugin", _OTHER_PACKAGE),
    "MIC": ("MicImagePlugin", _OTHER_PACKAGE),
}
# Before, FITS files unpack without a bound (CVE-2026-40192), and Photoshop's make the decoder write
# outside its memory (CVE-2026-25990).
_SAFE_SINCE = {"FITS": (12, 2, 0), "PSD": (12, 1, 1)}
# Pillow names the file without these libraries, and cannot decode it.
_LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000"}
# These only write.
_WRITERS = ("PdfImagePlugin", "PalmImagePlugin")


@cache
def accepted() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded, the common ones first.

    The first call imports their parsers, which takes some 30 ms.
    """
    left_out = {module for module, _ in REFUSED.values()} | set(_WRITERS)
    for found in pkgutil.iter_modules(PIL.__path__):
        if found.name.endswith("ImagePlugin") and found.name not in left_out:
            with suppress(ImportError):
                importlib.import_module(f"PIL.{found.name}")
    from PIL import AvifImagePlugin

    # Otherwise each of the producers decodes with as many threads as there are CPUs.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # What another package added to Pillow has bounds that nobody has looked at.
    own = {name for name, (reader, _) in Image.OPEN.items() if reader.__module__.startswith("PIL.")}
    others = sorted(own - set(COMMON))
    return (*COMMON, *(name for name in others if why_refused(name) is None))


def why_refused(name: str) -> str | None:
    """Why files of this format are not decoded; None for one that is accepted."""
    if name in REFUSED:
        return REFUSED[name][1]
    if name in _SAFE_SINCE and _version() < _SAFE_SINCE[name]:
        since = ".".join(map(str, _SAFE_SINCE[name]))
        return f"Pillow reads it safely from {since} on, and this is {PIL.__version__}"
    if name in _LIBRARIES and not features.check(_LIBRARIES[name]):
        return "this Pillow was built without its library"
    return None


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in PIL.__version__.split(".")[:3] if part.isdigit())


def name_of(data: bytes) -> str | None:
    """The format that a file's first bytes announce, where no common parser takes it."""
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in _AVIF_BRANDS else "HEIF"
    return next((name for start, name in _PREFIXES.items() if data.startswith(start)), None)


_AVIF_BRANDS = (b"avif", b"avis")
_PREFIXES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WEBP",
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"SIMPLE  =": "FITS",
    b"\0\0\1\0": "ICO",
    b"icns": "ICNS",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"GRIB": "GRIB",
    b"BUFR": "BUFR",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x1c\x02": "IPTC",
    b"\0\0\1\xb3": "MPEG",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "FPX",
}
