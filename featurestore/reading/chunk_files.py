"""Single chunks that ``numpy.memmap`` maps, for systems without the mapper of ``mapping``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import InputError
from featurestore.reading.mapping import require_size
from featurestore.storage.shape import ArraySpec
from featurestore.system.contents import not_there
from featurestore.system.refusals import is_absent, named_errors, refusal

# The share of a process's descriptors for the mapped files of one feature, elsewhere than on Linux:
# ``numpy.memmap`` keeps a descriptor for each file, and a process on macOS may have 256.
_DESCRIPTORS = 1 / 8


class ChunkFiles:
    """The chunks of one array, each mapped when it is read; for systems other than Linux.

    Attributes:
        kept_bytes: the size of the chunks that may stay mapped, in bytes.
    """

    def __init__(self, root: Path, spec: ArraySpec, chunks: Iterable[int]) -> None:
        """Checks the files of the given chunks; maps none.

        Args:
            root: the folder of the store.
            spec: the array.
            chunks: the committed chunks.

        Raises:
            CorruptStoreError: a chunk's file is missing or has another size.
            StorageError: a file's status cannot be read.
        """
        self._root, self._spec = root, spec
        self._stamps = {chunk: self._stamp(chunk) for chunk in chunks}
        self.kept_bytes = _most_kept(len(self._stamps)) * spec.chunk_bytes

    def read(self, chunk: int) -> npt.NDArray[Any]:
        """Maps a chunk: ``dtype [rows per chunk, ...]``, read-only.

        Raises:
            InputError: the chunk was replaced since.
            CorruptStoreError: its file is missing or has another size.
            StorageError: its file cannot be mapped.
        """
        if self._stamp(chunk) != self._stamps[chunk]:
            raise InputError(
                f"Rows of {self._root} were replaced since it was opened.\nOpen it again."
            )
        path = self._root / self._spec.file(chunk)
        with named_errors(path):
            mapped = np.memmap(path, self._spec.dtype, "r", shape=self._spec.chunk_shape)
        return np.asarray(mapped)  # indexing a memmap returns copies as memmaps

    def _stamp(self, chunk: int) -> tuple[int, int]:
        """Inode and modification time (ns) of a chunk's file: they change when it is replaced."""
        file = self._spec.file(chunk)
        try:
            status = os.stat(f"{self._root}/{file}")  # noqa: PTH116  a Path for each takes longer
        except OSError as e:
            if is_absent(e):
                raise not_there(file, e, chunk) from None
            raise refusal(self._root / file, e) from e
        require_size(self._spec, chunk, status.st_size)
        return status.st_ino, status.st_mtime_ns


def _most_kept(files: int) -> int:
    """How many of a feature's files may stay mapped."""
    try:
        import resource
    except ImportError:  # Windows, where a process may have millions of handles
        return files
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return files if soft == resource.RLIM_INFINITY else min(files, int(soft * _DESCRIPTORS))
