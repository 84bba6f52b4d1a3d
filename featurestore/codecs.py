"""What chunk files hold: the payload as it is, or compressed for an archive.

Compressed chunks cannot be mapped: they are read whole, decoded and checked. One level, one library
and no threads, so that the same payload is the same file wherever that library's version is the
same; a compressed store's fingerprint names it.
"""

from __future__ import annotations

from typing import Any

NONE, ZSTD = "none", "zstd"
CODECS = (NONE, ZSTD)
# Not asked for, but found: an array that somebody rewrote.
FOREIGN = "foreign"

# Higher levels gain 4 to 8 % on features that were rounded to bfloat16 and take two to four times
# as long; on float32 ones they gain nothing.
_ZSTD_LEVEL = 1


def codec_documents(codec: str) -> list[dict[str, Any]]:
    """The codecs of an array, as its Zarr document lists them."""
    zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return [little, *([zstd] if codec == ZSTD else []), {"name": "crc32c"}]


def compress(codec: str, payload: memoryview) -> memoryview:
    """The payload as it goes into the file, before its checksum."""
    if codec == NONE:
        return payload
    from numcodecs import zstd

    return memoryview(zstd.compress(payload, _ZSTD_LEVEL))


def decompress(codec: str, body: memoryview, size_bytes: int) -> memoryview:
    """The payload of ``size_bytes`` bytes again.

    Raises:
        ValueError: it does not decode to as many bytes.
    """
    if codec == NONE:
        return body
    from numcodecs import zstd

    try:
        payload = memoryview(zstd.decompress(body))
    except (RuntimeError, ValueError, MemoryError) as e:
        raise ValueError(f"zstd cannot decode it: {e}") from e
    if len(payload) != size_bytes:
        raise ValueError(f"it decodes to {len(payload)} bytes, expected {size_bytes}")
    return payload
