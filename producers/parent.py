"""The first code of every child process: it ties itself to its parent and finds this project.

Run as a script, by its path, since nothing of this project can be imported before. A child whose
parent was killed while it started is to end in hundredths of a second, also where many of them want
the processor: only the standard library is imported here.

The folder that holds this project's packages is site-packages where they are installed. It must not
come before the standard library, as it would in PYTHONPATH: a package that puts an ``enum.py``
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

# What asks a build to stop; it is the parent's to hear.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# This project's packages, and its launcher.
_PACKAGES = frozenset({"featurestore", "producers", "consumers", "manyviews"})
_PR_SET_PDEATHSIG = 1


def follow_parent(parent: int) -> None:
    """Dies with the parent, however it ends; ends at once where it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
    # The parent decides when to stop: it finishes the current chunk after a signal to the group.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Siblings:
    """Finds this project's packages in the folder of this one, whatever else has their names."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Where a package of this project is; None for anything else."""
        return PathFinder.find_spec(name, [self._folder]) if name in _PACKAGES else None


def find_packages() -> None:
    """Makes this project importable, and what was installed beside it after all else."""
    folder = str(Path(__file__).resolve().parent.parent)
    sys.meta_path.insert(0, _Siblings(folder))
    if folder not in sys.path:
        sys.path.append(folder)


def main() -> None:
    """Runs ``main`` of a module; arguments: the parent's process id, the module, and its own."""
    parent, module, *arguments = sys.argv[1:]
    follow_parent(int(parent))
    find_packages()
    import_module(module).main(arguments)


if __name__ == "__main__":
    main()
