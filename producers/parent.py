"""The first code of every child process: it follows its parent and finds this project's packages.

It is run as a script, by its path, because no module of this project can be imported before. If the
parent was killed meanwhile, the child must end within hundredths of a second, even if many children
compete for the CPU: therefore only the standard library is imported here.

The folder of this project's packages is site-packages if they are installed. It must not come
before the standard library on the path, as it would with PYTHONPATH: a package with an ``enum.py``
there would end every child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

# Signals that ask a build to stop; children ignore them, the parent handles them.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# This project's packages, and its launcher.
_PACKAGES = frozenset({"featurestore", "producers", "consumers", "manyviews"})
_PR_SET_PDEATHSIG = 1


def follow_parent(parent: int) -> None:
    """Ends this process when its parent ends, in whatever way; at once if the parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    # The parent decides when to stop: after a signal to the group it completes the current chunk.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Siblings:
    """Finds this project's packages in their own folder, even if others have the same names."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """The spec of a package of this project; None for any other module."""
        return PathFinder.find_spec(name, [self._folder]) if name in _PACKAGES else None


def find_packages() -> None:
    """Makes this project importable; packages beside it come last on the path."""
    folder = str(Path(__file__).resolve().parent.parent)
    sys.meta_path.insert(0, _Siblings(folder))
    if folder not in sys.path:
        sys.path.append(folder)


def main() -> None:
    """Runs ``main`` of a module. Arguments: parent's process id, module name, its arguments."""
    parent, module, *arguments = sys.argv[1:]
    follow_parent(int(parent))
    find_packages()
    import_module(module).main(arguments)


if __name__ == "__main__":
    main()
