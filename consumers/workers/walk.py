"""The order in which a worker builds chunks, next to workers that it knows nothing about.

The store is the only state that workers share: there is no coordinator, no lease and no clock. A
worker builds its own part of the chunks from the front. Then it takes chunks from the end of the
part that lacks most, but not the first two that the part lacks, which its owner is building. A part
whose front does not move has lost its owner. At last only chunks are left that others are building:
the worker waits, and builds what nobody commits in time. A chunk that two workers build is the same
twice, so that a wrong guess costs only time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set

from consumers.workers.share import Share

# Chunks that the owner of a part is building: one is filled while the one before is computed.
_IN_WORK = 2
# A part whose first missing chunk stays the same for this many times the time of a chunk has no
# owner any more.
_ALIVE = 3.0
# A chunk is overdue if nobody commits any chunk for this many times the time that one takes.
_PATIENCE = 2.0
# The time that a chunk takes, in seconds, for a worker that has not built one.
_UNKNOWN_S = 30.0


class Walk:
    """The chunks that one worker builds, one after the other.

    Attributes:
        chunks: number of chunks of the store.
    """

    def __init__(
        self,
        share: Share,
        chunks: int,
        committed: Callable[[], Set[int]],
        clock: Callable[[], float] = time.monotonic,
        *,
        remakes: bool = True,
    ) -> None:
        """Starts at the first missing chunk of the worker's part.

        Args:
            share: which of the workers this is.
            chunks: number of chunks of the store.
            committed: function that returns the chunks that are committed now, by whichever worker.
            clock: function that returns a time in seconds.
            remakes: whether to build chunks that another worker has begun, but does not commit.
        """
        self.chunks = chunks
        self._share = share
        self._parts = [Share(index, share.count).part(chunks) for index in range(share.count)]
        self._committed = committed
        self._clock = clock
        self._remakes = remakes
        self._claimed: set[int] = set()
        self._fronts: dict[int, tuple[int, float]] = {}
        self._missing: frozenset[int] = frozenset()
        self._since = clock()

    def claim(self, chunk_s: float) -> int | None:
        """The next chunk to build; None if others are building all that are left.

        Args:
            chunk_s: the time that this worker takes for a chunk, in seconds; 0 if unknown.
        """
        missing = self._look()
        own = missing.intersection(self._parts[self._share.index]) - self._claimed
        return self._take(min(own) if own else self._of_others(missing, chunk_s))

    def _of_others(self, missing: Set[int], chunk_s: float) -> int | None:
        """A chunk of the part that lacks most.

        Workers that finish at the same time look at the same part. All but its owner divide its
        chunks by their numbers, modulo the number of these workers, and each takes its own from the
        end; of those of another it leaves the last one, which that worker is building.
        """
        free = [self._free(part, missing, chunk_s) for part in self._parts]
        owner = max(range(len(free)), key=lambda index: len(free[index]))
        others = max(1, self._share.count - 1)
        rank = (self._share.index - owner - 1) % self._share.count
        classes = [
            [chunk for chunk in free[owner] if chunk % others == (rank + place) % others]
            for place in range(others)
        ]
        if classes[0]:
            return classes[0][-1]
        return next((chunks[0] for chunks in classes if len(chunks) > 1), None)

    def _free(self, part: range, missing: Set[int], chunk_s: float) -> list[int]:
        """The missing chunks of a part, except those that its owner is building, in order."""
        lacking = [chunk for chunk in part if chunk in missing]
        _, since = self._fronts[part.start]
        is_alive = self._clock() - since < _ALIVE * (chunk_s or _UNKNOWN_S) or not self._remakes
        return [c for c in lacking[_IN_WORK if is_alive else 0 :] if c not in self._claimed]

    def overdue(self, chunk_s: float, *, is_only: bool = False) -> int | None:
        """A chunk that nobody commits in time; None as long as there is hope, or nothing is left.

        Args:
            chunk_s: the time that this worker takes for a chunk, in seconds; 0 if unknown.
            is_only: whether all other workers have ended, so that there is no hope.
        """
        missing = sorted(self._look())
        if not (missing and self._remakes):
            return None
        patience_s = 0.0 if is_only else _PATIENCE * (chunk_s or _UNKNOWN_S)
        if self._clock() - self._since < patience_s:
            return None
        self._since = self._clock()
        return self._take(missing[self._share.index % len(missing)])

    def is_complete(self) -> bool:
        """Whether every chunk is committed."""
        return not self._look()

    def _look(self) -> frozenset[int]:
        """The missing chunks now."""
        missing, now = frozenset(range(self.chunks)) - self._committed(), self._clock()
        if missing != self._missing:
            self._missing, self._since = missing, now
        for part in self._parts:
            front = next((chunk for chunk in part if chunk in missing), -1)
            if self._fronts.get(part.start, (-2, now))[0] != front:
                self._fronts[part.start] = front, now
        return missing

    def _take(self, chunk: int | None) -> int | None:
        if chunk is not None:
            self._claimed.add(chunk)
        return chunk
