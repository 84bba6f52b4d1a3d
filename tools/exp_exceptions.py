"""Record arguments for which torch's float32 exp is not correctly rounded, for the image recipe.

Usage:
    python -m tools.exp_exceptions producers/kernels/exp_exceptions.npz

torch takes its exp from MKL's vector library, which is off by one unit in the last place for one
argument in a hundred; the arguments differ between SSE4.2, AVX2 and AVX-512. The recipe is defined
by the results with AVX-512 on every machine: this script writes the table of their exceptions,
which ``producers/kernels/exponential.py`` reads. It computes them with ``tools/avx512.py``, so it
runs on any CPU, in some minutes; on a CPU with AVX-512 it compares each of them with torch.
"""

from __future__ import annotations

import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from producers.kernels.exponential import RATIO_DRAWS, WEIGHT_BITS, log_ratios, weight_arguments
from tools import avx512

_BLOCK = 1 << 22
# Every C library's exp in double precision is within one unit of its last place. Where the true
# value lies farther than that from a float32 rounding boundary, all of them round it alike.
_UNITS = 1
# A gap of this length only extends the next gap; it marks no exception.
_FAR = 255

Bits = npt.NDArray[np.int64]


def exceptions(arguments: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Units in the last place by which torch's exp is above the correctly rounded one.

    Raises:
        RuntimeError: the difference is more than one unit, or C libraries may round an argument
            differently, or torch uses AVX-512 and returns another exp.
    """
    exact = np.exp(arguments.astype(np.float64))
    rounded = exact.astype(np.float32)
    above = np.nextafter(rounded, np.float32(np.inf)).astype(np.float64)
    below = np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64)
    for neighbour in (above, below):
        boundary = (rounded.astype(np.float64) + neighbour) / 2
        near = np.abs(exact - boundary) <= 2 * _UNITS * np.spacing(exact)
        for argument, edge in zip(arguments[near], boundary[near], strict=True):
            true = Decimal(float(argument)).exp()
            if abs(true - Decimal(edge)) <= _UNITS * Decimal(float(np.spacing(edge))):
                raise RuntimeError(f"exp({argument}) is too near a rounding boundary")
    found = avx512.exp(arguments)
    if _has_avx512() and not np.array_equal(found, torch.from_numpy(arguments).exp().numpy()):
        raise RuntimeError("torch's exp is not that of tools/avx512.py on this CPU")
    units = found.view(np.int32) - rounded.view(np.int32)
    if np.abs(units).max(initial=0) > 1:
        raise RuntimeError("torch's exp is off by more than one unit in the last place")
    return units.astype(np.int8)


def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def steps(positions: Bits) -> npt.NDArray[np.uint8]:
    """Distances from each exception to the next, as bytes; see ``exponential.positions``."""
    gaps = np.diff(positions, prepend=-1) - 1
    far = gaps // _FAR
    coded = np.full(int(far.sum()) + len(gaps), _FAR, np.uint8)
    coded[np.cumsum(far + 1) - 1] = gaps % _FAR
    return coded


def table() -> dict[str, npt.NDArray[np.uint8]]:
    """The table's arrays."""
    arrays = {}
    domains = {
        "ratio": (range(RATIO_DRAWS), log_ratios),
        "weight": (WEIGHT_BITS, weight_arguments),
    }
    for name, (domain, arguments) in domains.items():
        units = [
            exceptions(arguments(np.arange(at, min(at + _BLOCK, domain.stop), dtype=np.uint32)))
            for at in range(domain.start, domain.stop, _BLOCK)
        ]
        all_units = np.concatenate(units)
        positions = np.flatnonzero(all_units)
        print(f"{name}: {len(positions):,} exceptions among {len(all_units):,} arguments")
        arrays[f"{name}_steps"] = steps(positions)
        arrays[f"{name}_up"] = np.packbits(all_units[positions] > 0)
    return arrays


def main() -> None:
    """Write the table to the path given as the only argument."""
    torch.set_num_threads(1)
    if not _has_avx512():
        print("This CPU has no AVX-512: the table is not compared with torch.")
    path = Path(sys.argv[1])
    # numpy only writes deflate, but reads every compression of zipfile; LZMA saves a fifth.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in table().items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # its date is 1980, so the file is reproducible
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
