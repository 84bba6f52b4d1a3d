"""Stop signals, held back until the chunk in hand is committed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from producers.parent import STOP_SIGNALS


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first stop signal, so that the chunk in hand is finished and committed.

    A second one acts as it would have without us: Ctrl-C twice stops at once, and loses nothing
    but the chunk in hand and the one before it, if texts of that are still to be embedded. More of
    them do not disturb what is done on the way out.

    Yields:
        The signals that came; empty as long as none did.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may set handlers
        return
    # One that is ignored stays so: nohup's SIGHUP, a background job's SIGINT.
    numbers = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: object) -> None:
        stopped.append(number)
        plain = previous[number] is signal.default_int_handler
        signal.signal(number, interrupt if plain else previous[number])

    def interrupt(number: int, _frame: object) -> None:
        # The thread that writes a chunk is waited for, whatever comes: the lock is held for it.
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
