"""Write one chunk in a thread while the next one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

from consumers.engine.runner import EndedChunk
from featurestore.records import SampleRecord


@dataclass(frozen=True, slots=True)
class MadeChunk:
    """A chunk whose samples are all taken and whose batches are all submitted.

    Attributes:
        chunk: its number.
        records: its samples.
        ended: its features, maybe still to come: per backbone the parts of the views.
    """

    chunk: int
    records: Sequence[SampleRecord]
    ended: Sequence[Sequence[EndedChunk]]


class Committer:
    """Runs ``commit`` in a thread, on one chunk at a time. A context manager.

    One chunk is written while the next is made, and no more: memory is bounded, and chunks are
    committed in their order.
    """

    def __init__(self, commit: Callable[[MadeChunk], None]) -> None:
        self._commit = commit
        self._thread = ThreadPoolExecutor(1, "committer")
        self._made: MadeChunk | None = None
        self._future: Future[None] | None = None

    def submit(self, made: MadeChunk) -> None:
        """Begins to write ``made``; the chunk before must be settled."""
        if self._future is not None:
            raise RuntimeError("the chunk before is not settled")
        self._made = made
        self._future = self._thread.submit(self._commit, made)

    @property
    def done(self) -> bool:
        """Whether a chunk is written, or failed to be, and not settled."""
        return self._future is not None and self._future.done()

    def settle(self) -> MadeChunk | None:
        """Waits for the chunk that is being written; returns it, None where there is none.

        Raises:
            Exception: what writing it raised.
        """
        if self._future is None:
            return None
        self._future.result()  # stays unsettled where a signal ends the wait
        made, self._made, self._future = self._made, None, None
        return made

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the chunk that is being written, whatever ended the loop.

        Not even an interruption ends the wait: the store's lock is released after it, and a chunk
        is written under the lock or not at all.
        """
        interruption = _wait_out(lambda: wait([] if self._future is None else [self._future]))
        self._thread.shutdown()
        failure = None if self._future is None else self._future.exception()
        # Features that were cancelled are no failure: the build was stopped before they came.
        if failure not in (None, error) and not isinstance(failure, CancelledError):
            raise failure from error
        if interruption is not None:
            raise interruption


def _wait_out(call: Callable[[], object]) -> BaseException | None:
    """Makes a call until it returns; returns the first interruption of it, if there was one."""
    first: BaseException | None = None
    while True:
        try:
            call()
        except BaseException as interruption:  # noqa: BLE001  raised once nothing is written
            first = first or interruption
        else:
            return first
