"""Arrays on disk: Zarr v3 metadata, and one file per chunk whose payload can be memory-mapped.

A chunk file is the raw little-endian payload followed by its CRC-32C (RFC 3720) in four
little-endian bytes. The codecs ``[bytes, crc32c]`` produce this format, so zarr-python, zarrs and
tensorstore can read it, and the page-aligned payload can be memory-mapped directly. zarr writes the
metadata documents; ``durable`` writes the chunk files, because zarr-python's store never syncs.

An array that was rewritten with other codecs, by any Zarr library, is read through zarr. Its files
differ from those that were committed, but its rows must be equal: the ledger holds the CRC-32C of
the raw payload, and every chunk is compared with it when it is read.
"""

from __future__ import annotations

import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptStoreError, ManyViewsError
from featurestore.storage.codecs import NONE, REWRITTEN, codec_documents, compress, decompress
from featurestore.storage.shape import CHECKSUM_BYTES, ArraySpec
from featurestore.system.contents import read_bytes
from featurestore.system.durable import target_name
from featurestore.system.refusals import is_folder, machine_error, refusal, status_of
from featurestore.wording import first_line

# Names of the files in an array's folder: its metadata document and its chunks.
_ARRAY_FILE = re.compile(r"zarr\.json|c(\.[0-9]+)+")

# Exceptions of zarr and its codecs for invalid documents and chunks. A refusal by the operating
# system raises some of them too, see ``_unreadable``.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OverflowError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
)


def holds_only_an_array(folder: Path) -> bool:
    """Whether a folder holds nothing but an array's document and chunks, finished or not.

    Also True for an empty folder, which a killed writer may have created or emptied.
    """
    if folder.is_symlink() or not is_folder(folder):
        return False
    return all(
        _ARRAY_FILE.fullmatch(target_name(entry.name))
        and entry.is_file()
        and not entry.is_symlink()
        for entry in folder.iterdir()
    )


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """An encoded chunk, ready to be written.

    Attributes:
        body: the encoded payload.
        crc: CRC-32C of the payload before encoding.
        body_crc: CRC-32C of the body; equal to ``crc`` without compression.
    """

    body: memoryview
    crc: int
    body_crc: int

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.body) + CHECKSUM_BYTES

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yields the parts of the file's content in order."""
        yield self.body
        yield self.body_crc.to_bytes(CHECKSUM_BYTES, "little")


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) of ``data``, as defined for iSCSI (RFC 3720)."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data)))


def encode(spec: ArraySpec, block: npt.NDArray[Any]) -> EncodedChunk:
    """Encodes ``block`` ``[n <= rows, ...]`` as one chunk; missing rows are filled with NaN."""
    full = np.full(spec.chunk_shape, np.nan, dtype=spec.dtype)
    full[: len(block)] = block
    flat = full.reshape(-1).view(np.uint8)
    crc = int(google_crc32c.value(flat))
    body = compress(spec.codec, flat.data)
    return EncodedChunk(body, crc, crc if spec.codec == NONE else crc32c(body))


def read_chunk(
    root: Path, spec: ArraySpec, chunk: int, committed: int | None = None
) -> npt.NDArray[Any]:
    """Reads one chunk and checks it.

    Args:
        root: the folder of the store.
        spec: the array.
        chunk: the chunk's number.
        committed: the CRC-32C in the ledger; detects an intact file in the wrong place.

    Returns:
        ``dtype [n, ...]``, read-only; the last chunk without its padding.

    Raises:
        CorruptStoreError: the file is missing, has another size or fails its checksum.
        StorageError: the file cannot be read, or there is not enough memory.
    """
    if spec.codec == REWRITTEN:
        return _read_rewritten(root, spec, chunk, committed)
    file = spec.file(chunk)
    try:
        data = memoryview(read_bytes(root / file, root))
    except CorruptStoreError as e:
        raise CorruptStoreError(file, e.problem, chunk=chunk) from None
    if spec.is_mappable and len(data) != spec.file_bytes:
        problem = f"{len(data)} bytes, expected {spec.file_bytes}"
        raise CorruptStoreError(file, problem, chunk=chunk)
    body = np.frombuffer(data[:-CHECKSUM_BYTES], np.uint8)
    crc = google_crc32c.value(body)
    if crc != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise CorruptStoreError(file, "its checksum does not match its content", chunk=chunk)
    flat = body
    if not spec.is_mappable:
        try:
            payload = decompress(spec.codec, body.data, spec.chunk_bytes)
        except ValueError as e:
            raise CorruptStoreError(file, str(e), chunk=chunk) from e
        except MemoryError as e:
            raise refusal(root / file, e) from e
        flat = np.frombuffer(payload, np.uint8)
        crc = google_crc32c.value(flat)
    if committed not in (None, crc):
        raise CorruptStoreError(file, "its content is not what was committed", chunk=chunk)
    rows = min(spec.rows, spec.shape[0] - chunk * spec.rows)
    return flat.view(spec.dtype).reshape(spec.chunk_shape)[:rows]


def _read_rewritten(
    root: Path, spec: ArraySpec, chunk: int, committed: int | None
) -> npt.NDArray[Any]:
    """Reads a chunk through zarr and compares its rows with the committed checksum.

    zarr reads a missing chunk as NaN, which does not match the checksum.
    """
    rows = slice(chunk * spec.rows, min(spec.shape[0], (chunk + 1) * spec.rows))
    try:
        block = np.asarray(_open_rewritten(root, spec)[rows], spec.dtype)
    except _UNREADABLE as e:
        raise _unreadable(root, spec.name, f"zarr cannot read it: {first_line(e)}", e, chunk) from e
    if committed not in (None, encode(spec, block).crc):
        raise CorruptStoreError(spec.name, "its content is not what was committed", chunk=chunk)
    block.flags.writeable = False
    return block


def _open_rewritten(root: Path, spec: ArraySpec) -> Any:
    """Opens the array with zarr-python; the caller has checked its shape and dtype."""
    import zarr

    return zarr.open_array(root / spec.name, mode="r", zarr_format=3)


def _unreadable(
    root: Path, file: str, problem: str, error: BaseException, chunk: int | None = None
) -> ManyViewsError:
    """The error for a failure of zarr: a StorageError if the system refused access, else damage."""
    refused = machine_error(error)
    if refused is not None:
        return refusal(root / file, refused)
    return CorruptStoreError(file, problem, chunk=chunk)


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The ``zarr.json`` of a group, as zarr writes it."""
    import zarr

    documents: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(documents)
    zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
    return bytes(documents["zarr.json"].to_bytes())


def array_document(spec: ArraySpec, dimension_names: tuple[str, ...]) -> bytes:
    """The ``zarr.json`` of an array, as zarr writes it."""
    import zarr

    serializer, *compressors = codec_documents(spec.codec)
    documents: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(documents)
    zarr.create_array(
        store,
        shape=spec.shape,
        chunks=spec.chunk_shape,
        dtype=spec.dtype,
        serializer=serializer,
        compressors=compressors,
        filters=None,
        fill_value=float("nan"),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimension_names,
        zarr_format=3,
    )
    return bytes(documents["zarr.json"].to_bytes())


def check_array_document(root: Path, spec: ArraySpec) -> str:
    """Checks that the array's ``zarr.json`` matches the store's own record.

    Returns:
        The expected codec; or ``rewritten`` if only the codecs and the layout of chunks differ, and
        zarr can read them.

    Raises:
        CorruptStoreError: the document is missing, is not JSON, or describes another array.
    """
    file = f"{spec.name}/zarr.json"
    document = parse_document(root, file)
    expected: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": {"<f4": "float32", "<f8": "float64"}[spec.dtype],
        "fill_value": "NaN",
    }
    layout: dict[str, Any] = {
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(spec.chunk_shape)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
    }
    rewritten = document.get("codecs") != codec_documents(spec.codec)
    for key, value in (expected if rewritten else expected | layout).items():
        if document.get(key) != value:
            raise CorruptStoreError(file, f"{key} is {document.get(key)!r}, expected {value!r}")
    if not rewritten:
        return spec.codec
    try:
        _open_rewritten(root, spec)
    except _UNREADABLE as e:
        codecs = repr(document.get("codecs"))[:200]
        raise _unreadable(root, file, f"codecs is {codecs}, and zarr: {first_line(e)}", e) from e
    return REWRITTEN


def parse_document(root: Path, file: str, limit_bytes: int = 64 << 20) -> dict[str, Any]:
    """Reads a JSON object of the store.

    Raises:
        CorruptStoreError: the file is missing, larger than ``limit_bytes``, or not a JSON object.
    """
    path = root / file
    status = status_of(path)
    if status is not None and status.st_size > limit_bytes:
        raise CorruptStoreError(file, f"{status.st_size} bytes, at most {limit_bytes} expected")
    try:
        value = json.loads(read_bytes(path, root))
    except (ValueError, RecursionError) as e:
        raise CorruptStoreError(file, f"not JSON: {e}") from None
    if not isinstance(value, dict):
        raise CorruptStoreError(file, f"a JSON object was expected, found {type(value).__name__}")
    return value
