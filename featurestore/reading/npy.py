"""Writes the headers of ``.npy`` files (version 1.0, C order) and maps the files for reading."""

from __future__ import annotations

import io
import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.system.refusals import is_absent, refusal
from featurestore.wording import first_line

# Exceptions of NumPy for a file that is not npy, or whose header is damaged: NumPy parses the
# header as a Python literal, and the memory map checks the size. A MemoryError means that the short
# header is nested too deeply for the parser; a map without memory raises ENOMEM instead.
_NOT_NPY = (OSError, ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The bytes that ``np.save`` writes before the values, for files whose values are streamed.

    Args:
        shape: the shape of the whole array.
        descr: the dtype in the notation of the format, with its byte order.

    Raises:
        ValueError: the header does not fit version 1.0 (65,535 bytes).
    """
    out = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def map_npy(path: Path) -> NDArray[Any]:
    """Maps an ``.npy`` file read-only, without reading its values.

    A header that states a larger array than the file holds is refused without allocating memory;
    pickled objects are refused too.

    Raises:
        InputError: the file is missing, or is not one complete ``.npy`` file.
        StorageError: the file cannot be opened or mapped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns if it has to guess at a damaged header
            mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (*_NOT_NPY, tokenize.TokenError, Warning) as e:
        if isinstance(e, OSError) and e.errno is not None and not is_absent(e):
            raise refusal(path, e) from e
        raise InputError(f"{path} is not a complete .npy file: {first_line(e)}") from e
    trailing = path.stat().st_size - mapped.offset - mapped.nbytes
    if trailing:
        raise InputError(f"{path} is not one .npy file: {trailing:,} bytes follow its values.")
    return mapped
