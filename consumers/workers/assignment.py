"""The chunks that a build process is to build, and their samples for the producers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from consumers.workers.walk import Walk
from featurestore.records import Sample
from featurestore.storage.shape import StoreSpec

# Time between two looks at the store while others build the last chunks, in seconds.
_LOOK_S = 0.5


class Pace:
    """The time that a chunk takes, measured from one commit to the next."""

    def __init__(self) -> None:
        self._start = self._first = self._last = time.monotonic()
        self._chunks = 0

    def mark(self) -> None:
        """Notes that a chunk was committed now."""
        self._last = time.monotonic()
        if not self._chunks:
            self._first = self._last
        self._chunks += 1

    def chunk_s(self) -> float:
        """The mean time of a chunk in seconds; 0 before the first one is committed."""
        if self._chunks > 1:
            return (self._last - self._first) / (self._chunks - 1)
        # The first chunk includes the start of the producers.
        return self._first - self._start if self._chunks else 0.0


class Claims(Protocol):
    """Decides which chunks a process builds."""

    def claim(self) -> int | None:
        """The next chunk to build; None if there is none at present."""

    def is_needed(self, chunk: int) -> bool:
        """Whether a claimed chunk is still to be built: no other process has committed it."""

    def wait(self, stopped: Sequence[int]) -> int | None:
        """Called when all claimed chunks are committed, and nothing can be claimed.

        Args:
            stopped: the stop signals received so far; the wait ends with the first one.

        Returns:
            One more chunk to build; None if the store is complete, or a signal was received.
        """


class Missing:
    """All missing chunks, in order: the claims of a build by one process."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self._chunks = iter(chunks)

    def claim(self) -> int | None:
        """See :meth:`Claims.claim`."""
        return next(self._chunks, None)

    def is_needed(self, chunk: int) -> bool:  # noqa: ARG002
        """Returns True: no other process builds chunks."""
        return True

    def wait(self, stopped: Sequence[int]) -> int | None:  # noqa: ARG002
        """Returns None: no other process builds chunks."""
        return None


class WorkerClaims:
    """The chunks of one of several workers.

    Args:
        walk: the order of the chunks.
        chunk_s: function that returns the time that this worker takes for a chunk, in seconds; 0 if
            unknown.
        is_committed: function that returns whether a chunk is committed now, by whichever worker.
        is_only: function that returns whether all other workers are known to have ended.
    """

    def __init__(
        self,
        walk: Walk,
        chunk_s: Callable[[], float],
        is_committed: Callable[[int], bool] = lambda _: False,
        is_only: Callable[[], bool] = lambda: False,
    ) -> None:
        self._walk, self._chunk_s = walk, chunk_s
        self._is_committed, self._is_only = is_committed, is_only

    def claim(self) -> int | None:
        """See :meth:`Claims.claim`."""
        return self._walk.claim(self._chunk_s())

    def is_needed(self, chunk: int) -> bool:
        """See :meth:`Claims.is_needed`."""
        return not self._is_committed(chunk)

    def wait(self, stopped: Sequence[int]) -> int | None:
        """See :meth:`Claims.wait`; the wait is here, so that no claim delays the producers."""
        while not (stopped or self._walk.is_complete()):
            chunk = self.claim()
            if chunk is None:
                chunk = self._walk.overdue(self._chunk_s(), is_only=self._is_only())
            if chunk is not None:
                return chunk
            time.sleep(_LOOK_S)
        return None


class Assignment(Iterator[Sample]):
    """The samples of the claimed chunks, in order; chunks are claimed when they are needed.

    The producers take samples ahead of the main loop, which asks for the same chunks one after the
    other. When nothing can be claimed the iteration ends, and continues after :meth:`assign`.
    """

    def __init__(self, claims: Claims, spec: StoreSpec, samples: Sequence[Sample]) -> None:
        self._claims, self._spec, self._samples = claims, spec, samples
        self._chunks: deque[int] = deque()
        # The chunk that was assigned last, and those of its samples that were not taken yet.
        self._last = -1
        self._indices: deque[int] = deque()

    def __next__(self) -> Sample:
        """The next sample.

        Raises:
            StopIteration: nothing can be claimed at present.
        """
        if not self._indices:
            chunk = self._claims.claim()
            if chunk is None:
                raise StopIteration
            self.assign(chunk)
        return self._samples[self._indices.popleft()]

    def assign(self, chunk: int) -> None:
        """Adds a chunk after those that are claimed; all of their samples have been taken."""
        self._chunks.append(chunk)
        self._last = chunk
        self._indices = deque(self._spec.samples_of(chunk))

    def next_chunk(self) -> int | None:
        """The next chunk to fill; None if nothing can be claimed at present."""
        if not self._chunks:
            chunk = self._claims.claim()
            if chunk is None:
                return None
            self.assign(chunk)
        return self._chunks.popleft()

    def leave(self, chunk: int) -> int:
        """Leaves out the rest of the chunk that :meth:`next_chunk` returned.

        Returns:
            How many of its samples were taken.
        """
        count = len(self._spec.samples_of(chunk))
        if chunk == self._last:
            count -= len(self._indices)
            self._indices.clear()
        return count
