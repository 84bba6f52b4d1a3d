"""``.npy`` files as the project writes and reads them: version 1.0, C order."""

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

# What NumPy lets through for a file that is not npy, or whose header is damaged: it parses the
# header as a Python literal, and a memory map checks the size. The parser's MemoryError is one of
# a header that nests too deeply: the header is short, and a map that finds no memory says ENOMEM.
_NOT_NPY = (OSError, ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The bytes ``np.save`` writes before the values, for files that are streamed after it.

    Args:
        shape: the whole array's shape, known before its values are.
        descr: the dtype as the format spells it, with its byte order.

    Raises:
        ValueError: the header does not fit version 1.0 (65,535 bytes).
    """
    out = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def map_npy(path: Path) -> NDArray[Any]:
    """Maps an ``.npy`` file read-only, without reading its values.

    A header that promises more than the file holds is found here and allocates nothing; pickled
    objects are refused.

    Raises:
        InputError: the file is missing, or not one whole ``.npy`` file.
        StorageError: it cannot be opened or mapped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a header that had to be guessed at is a damaged one
            mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (*_NOT_NPY, tokenize.TokenError, Warning) as e:
        if isinstance(e, OSError) and e.errno is not None and not is_absent(e):
            raise refusal(path, e) from e
        raise InputError(f"{path} is not a complete .npy file: {first_line(e)}") from e
    behind = path.stat().st_size - mapped.offset - mapped.nbytes
    if behind:
        raise InputError(f"{path} is not one .npy file: {behind:,} bytes follow its values.")
    return mapped
