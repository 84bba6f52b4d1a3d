"""Who takes part in ``benchmarks/reads.py``: a program, one of its readers, and what it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.environments import environment, is_made

NUMPY, TORCH = "numpy==2.4.6", "torch==2.13.0"
MEMMAP, OURS = "memmap", "manyviews"


@dataclass(frozen=True, slots=True)
class Library:
    """One contender.

    Attributes:
        program: of ``benchmarks/``, without ``peer_``.
        kind: which of its readers.
        data: the folder of its files; those of one name share them.
        needs: what pip installs for it, or nothing where it runs in this environment.
        peer: whether ours has to be faster.
        quick: whether it takes part in quick runs.
        cold: whether it is measured without page cache.
    """

    program: str
    kind: str
    data: str
    needs: tuple[str, ...] = ()
    peer: bool = True
    quick: bool = True
    cold: bool = True


LIBRARIES = {
    MEMMAP: Library("numpy", "Memmap", "npy", peer=False),
    "torch tensor in RAM": Library("torch", "Tensor", "npy", peer=False),
    OURS: Library("manyviews", "Dataset", "store", peer=False),
    "manyviews, advice='random'": Library(
        "manyviews", "PageByPage", "store", peer=False, quick=False
    ),
    "manyviews, FeatureRows.take": Library(
        "manyviews", "Taken", "store", peer=False, quick=False, cold=False
    ),
    "manyviews, with z-score": Library(
        "manyviews", "Scaled", "store", peer=False, quick=False, cold=False
    ),
    "zarr-python, our store": Library("zarr", "Zarr", "store"),
    "LMDB": Library("lmdb", "Lmdb", "lmdb", ("lmdb==3.0.0", NUMPY)),
    "HF datasets": Library("datasets", "HuggingFace", "datasets"),
    "Lance": Library("lance", "Lance", "lance", ("pylance==14.0.2", NUMPY)),
    "HDF5, contiguous": Library("h5py", "Contiguous", "hdf5", ("h5py==3.16.0", NUMPY)),
    "HDF5, chunked": Library("h5py", "Chunked", "hdf5-chunked", ("h5py==3.16.0", NUMPY)),
    # Its own requirements exclude NumPy 2.2 and later.
    "MosaicML streaming": Library(
        "streaming", "Mosaic", "mds", ("mosaicml-streaming==0.13.0", TORCH)
    ),
    "litdata": Library("litdata", "Litdata", "litdata", ("litdata==0.2.76", NUMPY, TORCH)),
}
LOADERS = {
    "memmap, 0 workers": Library("loader", "MemmapLoader", "npy"),
    "memmap, 2 workers": Library("loader", "MemmapLoaderOfTwo", "npy"),
    "manyviews, 0 workers": Library("loader", "Loader", "store"),
    "manyviews, 2 workers": Library("loader", "LoaderOfTwo", "store"),
}


def interpreters(
    libraries: Mapping[str, Library], *, make: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """The Python interpreter of each library, and the reasons for missing libraries."""
    found, left_out = {}, {}
    for name, library in libraries.items():
        needs = list(library.needs)
        if not needs and library.program == "datasets" and find_spec("datasets") is None:
            left_out[name] = "datasets is not installed"
        elif not needs:
            found[name] = Path(sys.executable)
        elif not make and not is_made(library.program, needs):
            left_out[name] = f"its environment is not made; the full run installs {needs[0]}"
        else:
            try:
                found[name] = environment(library.program, needs)
            except subprocess.CalledProcessError:
                left_out[name] = f"pip could not install {' '.join(needs)}"
    return found, left_out
