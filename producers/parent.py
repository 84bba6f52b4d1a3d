"""A producer's tie to its parent, made before anything that takes time is imported.

Only the standard library is imported here: a producer whose parent was killed while it started is
to end in hundredths of a second, also where many of them want the processor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# What asks a build to stop; it is the parent's to hear.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a producer runs; the last argument is its parent's process id.
PRODUCER_CODE = (
    "import sys; from producers.parent import follow_parent; follow_parent(int(sys.argv[-1])); "
    "from producers.worker import main; main()"
)
_PR_SET_PDEATHSIG = 1


def follow_parent(parent: int) -> None:
    """Dies with the parent, however it ends; ends at once where it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    # The parent decides when to stop: it finishes the chunk in hand after a signal to the group.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
