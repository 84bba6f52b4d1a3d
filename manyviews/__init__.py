"""Frozen-backbone features with many views of every sample.

The packages ``featurestore``, ``producers`` and ``consumers`` are installed beside this one, under
names that another project may use as well. Python imports the first of a name that it finds, so
this package checks, before anything of them is imported, that they are its own.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_SIBLINGS = ("featurestore", "producers", "consumers")


def _check_siblings() -> None:
    """Finds the other packages without importing them.

    Raises:
        ImportError: Python would import one of them from another folder, or it is missing.
    """
    home = Path(__file__).resolve().parent.parent
    for name in _SIBLINGS:
        places = _places(name)
        if not places:
            raise ImportError(
                f"manyviews lies in {home}, but its package {name!r} is missing.\n"
                "Install manyviews again.",
                name=name,
            )
        if home / name not in places:
            raise ImportError(
                f"manyviews needs its own package {name!r} in {home}, but Python finds another "
                f"one:\n{places[0]}\n"
                "Remove or rename that one, take its folder off PYTHONPATH, or start Python in "
                "another folder.",
                name=name,
                path=str(places[0]),
            )


def _places(name: str) -> list[Path]:
    """The folders of a package, or the file of a module; none where there is no such name."""
    if name in sys.modules and sys.modules[name].__spec__ is None:
        spec: ModuleSpec | None = None  # find_spec refuses such a module
    else:
        spec = find_spec(name)
    if spec is None:
        return []
    found = spec.submodule_search_locations or [spec.origin or name]
    return [Path(place).resolve() for place in found]


_check_siblings()
