"""Untrusted bytes to RGB pixels or text: the only module that parses input files.

The format of a file is detected from its bytes, never from its name; ``formats`` defines which of
Pillow's parsers are used.
"""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from featurestore.errors import BadSampleError
from featurestore.wording import one_line
from producers import formats

MAX_PIXELS = 178_956_970  # above it Pillow, and so the paper's pipeline, refuses an image
# For larger sides CLIP's clean view of 224 pixels is impossible (see image_views), and Pillow's
# time to read a strip grows with the square of its width: half a minute for a hostile WebP file of
# 1 KB.
MAX_SIDE = 800_000

# Errors that Pillow documents for damaged files; any other error is a bug and is not caught.
_DAMAGE = (OSError, SyntaxError, ValueError, NotImplementedError, OverflowError)
# Further errors of the parsers of uncommon formats, most of which are written in Python.
_UNCOMMON_DAMAGE = (
    *(LookupError, TypeError, EOFError, ArithmeticError, AssertionError, struct.error, zlib.error),
    RuntimeError,  # libavif's
)
_ORIENTATION = 0x0112

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The properties of a poster's file, before its conversion to RGB.

    Attributes:
        format: Pillow's name of the format, detected from the bytes.
        mode: Pillow's mode, for example ``RGB``, ``L`` or ``CMYK``.
        width: stored width in pixels.
        height: stored height in pixels.
        orientation: EXIF orientation, 1 to 8; 1 if there is none. It is not applied.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int


@dataclass(frozen=True, slots=True)
class DecodedText:
    """A decoded synopsis, and its problem if it has one.

    Attributes:
        text: the usable text, without lone surrogates; ``""`` if nothing is usable.
        reason: None for a valid synopsis; otherwise ``empty``, ``not-utf8``, ``not-json``,
            ``not-an-object``, ``plot-type``, ``plot-items``, ``lone-surrogate``, ``out-of-memory``.
        detail: description of the problem in one line of at most 200 characters.
    """

    text: str
    reason: str | None = None
    detail: str = ""


def image(data: bytes) -> Image.Image:
    """Decode a poster as the paper did: first frame, EXIF orientation ignored, alpha dropped.

    Pillow's warnings are silenced for the whole process during the call: use one thread only.

    Args:
        data: the file's bytes, which are untrusted.

    Returns:
        The pixels in memory, mode ``RGB``.

    Raises:
        BadSampleError: ``empty``; ``not-an-image``; ``format``, an image of a kind that is not
            accepted; ``truncated``; ``too-large``, more than ``MAX_PIXELS`` or a side above
            ``MAX_SIDE``, refused before pixels are allocated; ``broken``; ``out-of-memory``.
    """
    with _refusing(data), _opened(data) as opened:
        return opened.convert("RGB")


def describe(data: bytes) -> ImageFacts:
    """Decode a poster as :func:`image` does, and return its properties instead of its pixels.

    Raises:
        BadSampleError: see :func:`image`.
    """
    with _refusing(data), _opened(data) as opened:
        facts = (str(opened.format), opened.mode, *opened.size)
        opened.convert("RGB")
        return ImageFacts(*facts, _orientation(opened))


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation; 1 for damaged EXIF data, which is no problem for a poster."""
    try:
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turns whatever Pillow raises for ``data`` into BadSampleError."""
    if not data:
        raise BadSampleError("empty", "0 bytes")
    with warnings.catch_warnings(), _pillows_own_limit():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError:
            raise _unidentified(data) from None
        except Image.DecompressionBombError as error:
            raise BadSampleError("too-large", one_line(error)) from None
        except MemoryError as error:
            raise BadSampleError("out-of-memory", one_line(error)) from None
        except _DAMAGE as error:
            cut = "truncated" in str(error).lower() or _webp_is_cut(data)
            raise BadSampleError("truncated" if cut else "broken", one_line(error)) from error


def text(data: bytes) -> DecodedText:
    """Decode a synopsis: a JSON object in UTF-8, with or without a byte order mark.

    Args:
        data: the file's bytes, which are untrusted.

    Returns:
        The plot, and its problem if it has one.
    """
    try:
        return plot_text(document(data))
    except BadSampleError as error:
        return DecodedText("", error.reason, error.detail)


def document(data: bytes) -> object:
    """Parse a synopsis file: JSON in UTF-8, with or without a byte order mark.

    Raises:
        BadSampleError: ``empty``, ``not-utf8``, ``not-json`` or ``out-of-memory``.
    """
    if not data:
        raise BadSampleError("empty", "0 bytes")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadSampleError("not-utf8", one_line(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadSampleError("not-json", one_line(error)) from None
    except MemoryError as error:
        raise BadSampleError("out-of-memory", one_line(error)) from None


def plot_text(parsed: object) -> DecodedText:
    """The text of a parsed synopsis.

    Args:
        parsed: the content of the JSON file: an object whose ``plot`` is a list of summaries or one
            string. A ``plot`` that is missing, null or empty is valid.

    Returns:
        The summaries joined by one space. Summaries that are not strings are dropped and recorded;
        lone surrogates, which no tokenizer accepts, become U+FFFD.
    """
    if not isinstance(parsed, dict):
        return DecodedText("", "not-an-object", f"found {type(parsed).__name__}")
    plot = parsed.get("plot")
    if not plot:
        return DecodedText("")
    if isinstance(plot, str):
        return encodable(plot)
    if not isinstance(plot, list):
        return DecodedText("", "plot-type", f"plot is {type(plot).__name__}")
    strings = [item for item in plot if isinstance(item, str)]
    joined = encodable(" ".join(strings))
    if len(strings) == len(plot):
        return joined
    dropped = len(plot) - len(strings)
    return DecodedText(joined.text, "plot-items", f"{dropped} of {len(plot)} are not strings")


@contextmanager
def _pillows_own_limit() -> Iterator[None]:
    """Sets Pillow's limit of pixels, which any library may have changed, for the block.

    Icons and textures contain a PNG or JPEG file, whose size only this limit bounds.
    """
    before, Image.MAX_IMAGE_PIXELS = (
        Image.MAX_IMAGE_PIXELS,
        MAX_PIXELS // 2,
    )  # Pillow raises an error above twice its limit
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Decodes an image without converting it; raises the errors of Pillow."""
    with _identified(data) as opened:
        _require_size(opened)
        try:
            opened.load()
        except TypeError as error:
            # A TIFF tag of the wrong type; Image.open() reports it as damage, load() does not.
            raise BadSampleError("broken", one_line(error)) from error
        except _UNCOMMON_DAMAGE as error:
            if opened.format in formats.COMMON:
                raise
            raise BadSampleError("broken", one_line(error)) from error
        _require_size(opened)  # the image in an icon may be larger than the icon claims
        yield opened


def _identified(data: bytes) -> Image.Image:
    """Reads the header of an image; raises the errors of Pillow."""
    try:
        return Image.open(io.BytesIO(data), formats=formats.COMMON)
    except UnidentifiedImageError:
        # Importing all parsers takes time, and few folders need them.
        accepted = formats.accepted()
        # Some parsers check no signature, and would accept bytes of another known format.
        if formats.name_of(data) not in (None, *accepted):
            raise
    try:
        return Image.open(io.BytesIO(data), formats=accepted)
    except _UNCOMMON_DAMAGE as error:
        raise BadSampleError("broken", one_line(error)) from error


def _require_size(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        detail = f"{width} x {height}; at most {MAX_PIXELS:,} pixels, {MAX_SIDE:,} on a side"
        raise BadSampleError("too-large", detail)


def _unidentified(data: bytes) -> BadSampleError:
    """The error for bytes that no accepted parser can read."""
    name = formats.name_of(data)
    if name is None:
        return BadSampleError("not-an-image", f"{len(data):,} bytes of no format that Pillow reads")
    if name in formats.accepted():
        return BadSampleError("broken", f"{name}: the header is damaged or cut short")
    why = formats.why_refused(name) or "Pillow does not read it"
    return BadSampleError("format", f"{name}: {why}")


def _webp_is_cut(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header says; its decoder only reports damage."""
    return data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data)


def encodable(plot: str) -> DecodedText:
    """The text, without lone surrogates, which no tokenizer accepts: they become U+FFFD."""
    repaired, count = _SURROGATE.subn("\N{REPLACEMENT CHARACTER}", plot)
    if not count:
        return DecodedText(plot)
    return DecodedText(repaired, "lone-surrogate", f"{count} characters replaced")
