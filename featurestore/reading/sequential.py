"""Reads consecutive samples from their files, for sequential passes from the disk.

The page faults of a mapping fetch pages one after the other. When a file is read instead, the
kernel fetches it in large pieces and reads ahead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.system.refusals import is_absent, refusal

# Size of the first read in bytes. After a small read, the kernel reads ahead in growing pieces
# while the rest is copied; a single large read would return only after fetching everything.
_FIRST_BYTES = 4096


class FilesInOrder:
    """The chunk files of a feature; no file is kept open."""

    def __init__(self, files: Sequence[str], rows: int) -> None:
        """Records the inode of each file, to detect its replacement.

        Args:
            files: the files of the chunks, in order; their sizes must have been checked.
            rows: samples per chunk.

        Raises:
            StorageError: a file was deleted, or its status cannot be read.
        """
        self._rows = rows
        try:
            self._files = [(file, os.stat(file).st_ino) for file in files]  # noqa: PTH116  8 times as fast
        except OSError as e:
            raise refusal(Path(str(e.filename)), e) from e

    def read(self, first: int, out: npt.NDArray[np.float32]) -> bool:
        """Reads consecutive samples.

        Args:
            first: the number of the first sample.
            out: the array to fill, float32 ``[B, V, D]``.

        Returns:
            False if a file was replaced since; the mapping still shows the file that was opened.

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
            fd = os.open(file, os.O_RDONLY)
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
    """Fills ``memory`` from a file, beginning at byte ``at``; False if the file is too short."""
    done = os.preadv(fd, [memory[:_FIRST_BYTES]], at)
    while 0 < done < len(memory):
        more = os.preadv(fd, [memory[done:]], at + done)
        if more == 0:
            return False
        done += more
    return done == len(memory)
