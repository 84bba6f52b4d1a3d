"""Write one chunk in a thread while the next one is filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

from consumers.device.computing import Need
from consumers.engine.batcher import LaunchedFeature
from featurestore.records import SampleRecord


@dataclass(frozen=True, slots=True)
class LaunchedChunk:
    """A chunk that is filled and whose batches are all launched.

    Attributes:
        chunk: the chunk's number.
        records: the records of its samples.
        features: its features, which may not be computed yet: for each backbone the parts of the
            views.
        need: whether the features are computed at all.
    """

    chunk: int
    records: Sequence[SampleRecord]
    features: Sequence[Sequence[LaunchedFeature]]
    need: Need


class Committer:
    """Writes chunks in a thread, one at a time. A context manager.

    At most one chunk is written while the next one is filled: this bounds memory, and commits
    chunks in order.

    Args:
        commit: function that writes and commits a chunk; returns whether it did, rather than leave
            it to another process.
    """

    def __init__(self, commit: Callable[[LaunchedChunk], bool]) -> None:
        self._commit = commit
        self._thread = ThreadPoolExecutor(1, "committer")
        self._writing: LaunchedChunk | None = None
        self._future: Future[bool] | None = None

    def write(self, launched: LaunchedChunk) -> None:
        """Starts to write a chunk; :meth:`committed` must have returned the previous one."""
        if self._future is not None:
            raise RuntimeError("the previous chunk is still being written")
        self._writing = launched
        self._future = self._thread.submit(self._commit, launched)

    @property
    def done(self) -> bool:
        """Whether :meth:`committed` would return a chunk, or raise, without waiting."""
        return self._future is not None and self._future.done()

    def committed(self) -> LaunchedChunk | None:
        """Waits until the chunk that is being written is committed.

        Returns:
            That chunk, or None if no chunk is being written, or it was left to another process.

        Raises:
            Exception: what ``commit`` raised.
        """
        if self._future is None:
            return None
        is_committed = self._future.result()  # if a signal ends the wait, the next call waits again
        committed, self._writing, self._future = self._writing, None, None
        return committed if is_committed else None

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the chunk that is being written, whatever the reason for leaving the block.

        Not even an interruption ends the wait: the store's lock is released afterwards, and a chunk
        must only be written while the lock is held.
        """
        interruption = _wait_out(lambda: wait([] if self._future is None else [self._future]))
        self._thread.shutdown()
        failure = None if self._future is None else self._future.exception()
        # Cancelled features are no failure: the build was stopped before they were computed.
        if failure not in (None, error) and not isinstance(failure, CancelledError):
            raise failure from error
        if interruption is not None:
            raise interruption


def _wait_out(call: Callable[[], object]) -> BaseException | None:
    """Repeats a call until it returns; returns the first exception that interrupted it, or None."""
    first: BaseException | None = None
    while True:
        try:
            call()
        except BaseException as interruption:  # noqa: BLE001  raised by the caller, later
            first = first or interruption
        else:
            return first
