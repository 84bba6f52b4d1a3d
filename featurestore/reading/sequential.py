"""Consecutive samples read from their files, where a pass in order has to come from the disk.

The page faults of a mapping fetch pages one after the other. Reading a file has the kernel fetch it
in large pieces, and ahead of whoever reads it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.system.refusals import is_absent, refusal

# After a read of so few bytes, the kernel reads ahead in growing pieces while the rest is copied;
# it would fetch all of a single large read before it returned anything.
_FIRST_BYTES = 4096


class FilesInOrder:
    """The chunk files of a feature; none is kept open."""

    def __init__(self, files: Sequence[str], rows: int) -> None:
        """Remembers which files these are.

        Args:
            files: of the chunks, in order; they are mapped, so their sizes are known to be right.
            rows: samples of a chunk.

        Raises:
            StorageError: a file is not there any more, or nobody can tell.
        """
        self._rows = rows
        try:
            self._files = [(file, os.stat(file).st_ino) for file in files]  # noqa: PTH116  8 times as fast
        except OSError as e:
            raise refusal(Path(str(e.filename)), e) from e

    def read(self, first: int, out: npt.NDArray[np.float32]) -> bool:
        """Reads the samples from ``first`` on.

        Args:
            first: a sample's number.
            out: float32 ``[B, V, D]``, filled.

        Returns:
            False where a file was replaced since: what is mapped is still the one that was opened.

        Raises:
            StorageError: a file cannot be read.
        """
        done = 0
        while done < len(out):
            chunk, start = divmod(first + done, self._rows)
            part = out[done : done + self._rows - start]
            if not self._read_part(chunk, start, part):
                return False
            done += len(part)
        return True

    def _read_part(self, chunk: int, start: int, part: npt.NDArray[np.float32]) -> bool:
        file, inode = self._files[chunk]
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_ino != inode:
                    return False
                return _read(fd, start * part[0].nbytes, part.reshape(-1).view(np.uint8).data)
            finally:
                os.close(fd)
        except OSError as e:
            if is_absent(e):
                return False
            raise refusal(Path(file), e) from e


def _read(fd: int, at: int, memory: memoryview) -> bool:
    """Fills ``memory`` from a file's byte ``at`` on; False where the file ends before."""
    done = os.preadv(fd, [memory[:_FIRST_BYTES]], at)
    while 0 < done < len(memory):
        more = os.preadv(fd, [memory[done:]], at + done)
        if more == 0:
            return False
        done += more
    return done == len(memory)
