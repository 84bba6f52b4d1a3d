import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from featurestore.errors import InputError
from featurestore.reading.npy import map_npy, npy_header

DESCRS = ["<f4", "<f8", "<f2", "|u1", "<i4", "<i8", "|b1", ">f4"]


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@given(array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6), st.sampled_from(DESCRS))
def test_header_is_what_numpy_saves(shape: tuple[int, ...], descr: str) -> None:
    array = np.zeros(shape, descr)
    assert npy_header(shape, descr) + array.tobytes() == saved(array)


@pytest.mark.parametrize("rows", [1, 9, 10, 99_999, 1_817_130, 10**12])
def test_header_of_large_files_without_their_values(rows: int) -> None:
    # A stride of zero gives numpy an array of any length in four bytes of memory.
    one = np.lib.stride_tricks.as_strided(np.zeros(1, "<f4"), (rows, 23), (0, 0), writeable=False)
    out = io.BytesIO()
    fields = np.lib.format.header_data_from_array_1_0(one) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(out, fields)
    header = npy_header((rows, 23))
    assert header == out.getvalue()
    assert header[:8] == b"\x93NUMPY\x01\x00"
    assert len(header) % 64 == 0
    assert f"'shape': ({rows}, 23)".encode() in header


def test_a_header_too_long_for_version_1_is_refused() -> None:
    with pytest.raises(ValueError, match="too big for version"):
        npy_header((1,) * 30_000)


def test_maps_what_numpy_saved(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    mapped = map_npy(tmp_path / "a.npy")
    assert mapped.dtype == np.float32
    assert np.array_equal(mapped, array)
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0, 0] = 1


def damaged() -> dict[str, bytes]:
    whole = saved(np.zeros((3, 4), np.float32))
    return {
        "empty": b"",
        "text": b"not an array at all",
        "header only": whole[:128],
        "one byte short": whole[:-1],
        "cut header": whole[:60],
        "promises 4 PB": npy_header((10**15,)) + bytes(100),
        "unclosed": whole.replace(b"(3, 4)", b"((3, 4"),
        "version 9": whole.replace(b"NUMPY\x01", b"NUMPY\x09"),
        "negative": whole.replace(b"(3, 4)", b"(3,-4)"),
        "python 2 long": whole.replace(b"(3, 4), ", b"(3L, 4),"),
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": saved(np.zeros(1, np.float32)).replace(b"'<f4'", b"'|O' "),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(damaged()[kind])
    warnings.simplefilter("ignore")  # as in most programs; pytest restores the filters
    with pytest.raises(InputError, match=r"a\.npy is not a complete \.npy file"):
        map_npy(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        map_npy(tmp_path / "a.npy")
    with pytest.raises(InputError, match="directory"):
        map_npy(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4))
def test_a_damaged_header_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(saved(np.zeros((3, 4), np.float32)))
    for position, value in edits:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        map_npy(path)
