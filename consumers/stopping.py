"""Stop signals: the current chunk is committed before the build ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from featurestore.errors import InterruptedBuildError
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from producers.parent import STOP_SIGNALS

# The signals that ask this process to stop, and the stop signal that each of them means.
_meanings: Mapping[int, int] = {number: number for number in STOP_SIGNALS}


def relayed(number: int) -> int:
    """The signal by which a parent process relays a stop signal to a worker process.

    A worker process ignores the stop signals themselves: Ctrl-C and schedulers send them to all
    processes of a group, and the one that the parent relays must not be a second one.
    """
    return int(signal.SIGRTMIN) + STOP_SIGNALS.index(number)


def follow_relayed() -> None:
    """Makes this process stop on what its parent relays, instead of on the stop signals."""
    global _meanings
    _meanings = {relayed(number): number for number in STOP_SIGNALS}
    signal.signal(relayed(signal.SIGINT), signal.default_int_handler)


class Notifier:
    """Passes a build's events on, also from signal handlers.

    A signal handler runs between any two operations of the main thread, even while an observer
    writes a line. An event from a handler is therefore passed on at once only if no other event is
    being passed on, and directly after that event otherwise.

    Args:
        notify: callback that receives an event's name and, as keywords, its facts.
    """

    def __init__(self, notify: Callable[..., None]) -> None:
        self._notify = notify
        self._busy = False
        self._waiting: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        """Passes an event on."""
        self._busy = True
        try:
            self._notify(event, **facts)
        finally:
            self._busy = False
        while self._waiting:
            self._pass_on(*self._waiting.pop(0))

    def from_handler(self, event: str, **facts: Any) -> None:
        """Passes an event on from a signal handler."""
        if self._busy:
            self._waiting.append((event, facts))
        else:
            self._pass_on(event, facts)

    def _pass_on(self, event: str, facts: dict[str, Any]) -> None:
        # A closed terminal sends SIGHUP and fails every write: the current chunk matters more.
        with suppress(OSError):
            self(event, **facts)


@contextmanager
def stop_signals(on_first: Callable[[int], None]) -> Iterator[list[int]]:
    """Records stop signals, so that the current chunk can be completed and committed.

    The second stop signal acts as it would without this context manager: a second Ctrl-C stops the
    build at once. What is lost then is the current chunk, and the chunk before it if its texts are
    not embedded yet. Further signals do not disturb the clean-up.

    Args:
        on_first: called with the number of the first signal, by the signal's handler.

    Yields:
        The numbers of the stop signals received so far; empty until the first one arrives.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may set handlers
        return
    # Ignored signals stay ignored: SIGHUP under nohup, SIGINT in a background job.
    numbers = [n for n in _meanings if signal.getsignal(n) is not signal.SIG_IGN]
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: object) -> None:
        stopped.append(_meanings[number])
        plain = previous[number] is signal.default_int_handler
        signal.signal(number, interrupt if plain else previous[number])
        if len(stopped) == 1:
            on_first(_meanings[number])

    def interrupt(number: int, _frame: object) -> None:
        # From here on Ctrl-C is ignored: the thread that writes a chunk is always waited for,
        # because the store's lock must be held until it is done.
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


def before_anything(number: int) -> InterruptedBuildError:
    """The error for a build that a stop signal ended before its first chunk was started."""
    name = signal.Signals(number).name
    return InterruptedBuildError(
        number, f"Stopped by {name} before anything was built: run the same command again."
    )


def interrupted(number: int, store: FeatureStore) -> InterruptedBuildError:
    """The error for a build that a stop signal ended after a committed chunk."""
    done, chunks = len(store.ledger), store.spec.chunks
    return InterruptedBuildError(
        number,
        f"Stopped by {signal.Signals(number).name} after {done} of {amount(chunks, 'chunk')}.\n"
        "Everything committed is kept; continue with --resume.",
    )
