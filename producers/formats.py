"""The image formats of the installed Pillow that are decoded, and those that are refused.

A file is offered to every safe parser: one that starts no other program, needs no package beyond
the dependencies of manyviews, and reports the number of pixels before it allocates them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import PIL

# The parsers of the common formats of posters are imported here, once per process.
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
_OTHER_PACKAGE = "Pillow needs a package for it that manyviews does not depend on"
# By format: the module that reads it, and why that module is never used.
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
# In earlier versions, FITS files are decompressed without a bound (CVE-2026-40192), and Photoshop
# files make the decoder write outside its memory (CVE-2026-25990).
_SAFE_SINCE = {"FITS": (12, 2, 0), "PSD": (12, 1, 1)}
# Without these libraries Pillow identifies the file, but cannot decode it.
_LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000"}
# Modules that only write files.
_WRITERS = ("PdfImagePlugin", "PalmImagePlugin")


@cache
def accepted() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded, the common ones first.

    The first call imports their parsers, which takes some 30 ms.
    """
    left_out = {name for name, _ in REFUSED.values()} | set(_WRITERS)
    for module in pkgutil.iter_modules(PIL.__path__):
        if module.name.endswith("ImagePlugin") and module.name not in left_out:
            with suppress(ImportError):
                importlib.import_module(f"PIL.{module.name}")
    from PIL import AvifImagePlugin

    # By default each producer would decode with as many threads as there are CPUs.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # Parsers that other packages add to Pillow are not reviewed, and so not used.
    own = {name for name, (reader, _) in Image.OPEN.items() if reader.__module__.startswith("PIL.")}
    others = sorted(own - set(COMMON))
    return (*COMMON, *(name for name in others if why_refused(name) is None))


def why_refused(name: str) -> str | None:
    """Why files of this format are not decoded; None for an accepted format."""
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
    """The format that a file's first bytes announce; for files that no common parser reads."""
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
