import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import CorruptStoreError
from featurestore.storage import arrays, shape
from featurestore.storage.shape import ArraySpec

SPEC = ArraySpec("feature", (5, 2, 8), 2, "<f4")
AXES = ("sample", "view", "dim")
VALUES = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)


def write(root: Path, spec: ArraySpec = SPEC, values: np.ndarray = VALUES) -> None:
    (root / "zarr.json").write_bytes(arrays.group_document({"note": "東京"}))
    (root / spec.name).mkdir(parents=True)
    (root / spec.name / "zarr.json").write_bytes(arrays.array_document(spec, AXES))
    for chunk in range(spec.chunks):
        encoded = arrays.encode(spec, values[chunk * spec.rows : (chunk + 1) * spec.rows])
        data = b"".join(encoded.parts())
        assert len(data) == encoded.size
        (root / spec.file(chunk)).write_bytes(data)


def crc32c_by_bits(data: bytes) -> int:
    """CRC-32C computed bit by bit from the polynomial of RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_zarr_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    spec = ArraySpec("deep/feature", SPEC.shape, 2, dtype)
    values = VALUES.astype(dtype)
    write(tmp_path, spec, values)
    group = zarr.open_group(tmp_path, mode="r")
    assert dict(group.attrs) == {"note": "東京"}
    array = zarr.open_array(tmp_path / spec.name, mode="r")
    assert (array.shape, array.chunks, array.dtype) == (spec.shape, (2, 2, 8), np.dtype(dtype))
    metadata: Any = array.metadata  # of version 2 or 3
    assert metadata.dimension_names == AXES
    assert np.isnan(array.fill_value)
    np.testing.assert_array_equal(array[:], values)


def test_we_read_what_zarr_writes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / SPEC.file(2)).unlink()
    zarr.open_array(tmp_path / SPEC.name, mode="r+")[:] = VALUES + 1
    for chunk in range(3):
        block = arrays.read_chunk(tmp_path, SPEC, chunk)
        np.testing.assert_array_equal(block, VALUES[2 * chunk : 2 * chunk + 2] + 1)


def test_zarr_notices_damage_too(tmp_path: Path) -> None:
    write(tmp_path)
    data = bytearray((tmp_path / SPEC.file(1)).read_bytes())
    data[3] ^= 1
    (tmp_path / SPEC.file(1)).write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / SPEC.name, mode="r")[:]


def test_a_chunk_file_is_payload_and_checksum(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(p.name for p in (tmp_path / SPEC.name).iterdir()) == [
        *(f"c.{i}.0.0" for i in range(3)),
        "zarr.json",
    ]
    for chunk, rows in enumerate((VALUES[0:2], VALUES[2:4], VALUES[4:5])):
        data = (tmp_path / SPEC.file(chunk)).read_bytes()
        assert len(data) == SPEC.chunk_bytes + 4 == 2 * 2 * 8 * 4 + 4
        assert data[: rows.nbytes] == rows.astype("<f4").tobytes()
        assert np.isnan(np.frombuffer(data[rows.nbytes : -4], "<f4")).all()
        assert data[-4:] == crc32c_by_bits(data[:-4]).to_bytes(4, "little")


def test_crc32c_known_answers() -> None:
    assert arrays.crc32c(b"123456789") == 0xE3069283
    assert arrays.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert arrays.crc32c(memoryview(b"\xff" * 32)) == 0x62A8AB43


def test_read_chunk_drops_the_filling_and_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path)
    last = arrays.read_chunk(tmp_path, SPEC, 2)
    assert last.shape == (1, 2, 8)
    np.testing.assert_array_equal(last, VALUES[4:])
    with pytest.raises(ValueError, match="read-only"):
        last[0] = 0


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / SPEC.file(2)  # the checksum includes the padding
    data = bytearray(path.read_bytes())
    for offset in range(len(data)):
        data[offset] ^= 1 << offset % 8
        path.write_bytes(data)
        with pytest.raises(CorruptStoreError, match="checksum") as caught:
            arrays.read_chunk(tmp_path, SPEC, 2)
        assert (caught.value.file, caught.value.chunk) == ("feature/c.2.0.0", 2)
        data[offset] ^= 1 << offset % 8
    path.write_bytes(data)
    arrays.read_chunk(tmp_path, SPEC, 2)


def test_every_other_size_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / SPEC.file(0)
    data = path.read_bytes()
    for size in (*range(len(data)), len(data) + 1):
        path.write_bytes((data + b"x")[:size])
        with pytest.raises(CorruptStoreError, match=f"{size} bytes, expected {len(data)}"):
            arrays.read_chunk(tmp_path, SPEC, 0)
    path.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        arrays.read_chunk(tmp_path, SPEC, 0)


def test_the_metadata_says_what_the_layout_promises() -> None:
    document = json.loads(arrays.array_document(SPEC, AXES))
    assert document["codecs"] == [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    assert document["zarr_format"] == 3
    assert document["node_type"] == "array"
    assert document["shape"] == [5, 2, 8]
    assert document["data_type"] == "float32"
    assert document["chunk_grid"]["configuration"] == {"chunk_shape": [2, 2, 8]}
    encoding = {"name": "default", "configuration": {"separator": "."}}
    assert document["chunk_key_encoding"] == encoding
    assert document["fill_value"] == "NaN"
    assert document["dimension_names"] == list(AXES)
    assert "consolidated_metadata" not in json.loads(arrays.group_document({}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("zarr_format", 2),
        ("node_type", "group"),
        ("shape", [6, 2, 8]),
        ("shape", [5, 2]),
        ("data_type", "float64"),
        ("data_type", "float16"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 2, 8]}}),
        ("chunk_grid", None),
        ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "/"}}),
        ("codecs", []),
        ("fill_value", 0.0),
    ],
)
def test_metadata_of_another_array_is_refused(tmp_path: Path, field: str, value: object) -> None:
    write(tmp_path)
    arrays.check_array_document(tmp_path, SPEC)
    path = tmp_path / SPEC.name / "zarr.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps(document | {field: value}))
    with pytest.raises(CorruptStoreError, match=f"{field} is") as caught:
        arrays.check_array_document(tmp_path, SPEC)
    assert caught.value.file == "feature/zarr.json"
    del document[field]
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptStoreError, match=f"{field} is None"):
        arrays.check_array_document(tmp_path, SPEC)


@given(st.integers(1, 100_000))
def test_aligned_rows_is_the_smallest_that_fills_pages(row_bytes: int) -> None:
    rows = shape.aligned_rows(row_bytes)
    assert rows * row_bytes % 4096 == 0
    assert rows & (rows - 1) == 0  # 4096 is a power of two, so only halving could do better
    assert rows == 1 or rows // 2 * row_bytes % 4096 != 0


def test_aligned_rows_known_answers() -> None:
    assert [shape.aligned_rows(70 * d * 4) for d in (512, 768, 2048)] == [1, 2, 1]
    assert [shape.aligned_rows(n) for n in (1, 4, 4096, 4095)] == [4096, 1024, 1, 4096]
