"""The content of chunk files: the payload, uncompressed or compressed for an archive.

Compressed chunks cannot be mapped: they are read completely, decoded and checked. Compression uses
one level, one library and no threads, so that equal payloads give equal files with equal versions
of the library; the fingerprint of a compressed store names the version.
"""

from __future__ import annotations

from typing import Any

NONE, ZSTD = "none", "zstd"
CODECS = (NONE, ZSTD)
# Not an option of a build: the codec of an array that was rewritten by another program.
REWRITTEN = "rewritten"

# Higher levels save 4 to 8 % on features that were rounded to bfloat16 and take two to four times
# as long; they save nothing on float32 features.
_ZSTD_LEVEL = 1
_MAGIC = bytes.fromhex("28b52ffd")
_SHORTEST_HEADER = 5


def codec_documents(codec: str) -> list[dict[str, Any]]:
    """The codecs of an array, as its Zarr document lists them."""
    zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return [little, *([zstd] if codec == ZSTD else []), {"name": "crc32c"}]


def compress(codec: str, payload: memoryview) -> memoryview:
    """The encoded payload, without the checksum that follows it in the file."""
    if codec == NONE:
        return payload
    from numcodecs import zstd

    return memoryview(zstd.compress(payload, _ZSTD_LEVEL))


def decompress(codec: str, body: memoryview, size_bytes: int) -> memoryview:
    """Decodes a payload of ``size_bytes`` bytes.

    Raises:
        ValueError: the body does not decode to this number of bytes.
        MemoryError: there is not enough memory.
    """
    if codec == NONE:
        return body
    from numcodecs import zstd

    # The library allocates the size that the frame states, so that is checked first.
    stated = frame_bytes(body)
    if stated is None:
        raise ValueError(
            "zstd cannot decode it: it is not a zstd frame, or the frame does not state its size"
        )
    if stated != size_bytes:
        raise ValueError(f"it decodes to {stated} bytes, expected {size_bytes}")
    try:
        payload = memoryview(zstd.decompress(body))
    except (RuntimeError, ValueError) as e:
        raise ValueError(f"zstd cannot decode it: {e}") from e
    if len(payload) != size_bytes:
        raise ValueError(f"it decodes to {len(payload)} bytes, expected {size_bytes}")
    return payload


def frame_bytes(body: bytes | memoryview) -> int | None:
    """The content size stated by a Zstandard frame (RFC 8878, 3.1.1.1); None without a size.

    Frames that are compressed in one call, as here, always state their size.
    """
    if len(body) <= _SHORTEST_HEADER or bytes(body[:4]) != _MAGIC:
        return None
    descriptor = body[4]
    is_single = descriptor >> 5 & 1
    start = 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3]
    size = (is_single, 2, 4, 8)[descriptor >> 6]
    if not size or len(body) < start + size:
        return None
    return int.from_bytes(body[start : start + size], "little") + (256 if size == 2 else 0)
