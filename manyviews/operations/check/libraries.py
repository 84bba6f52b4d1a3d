"""Libraries that do not fit each other, recognised without importing them."""

from __future__ import annotations

import re
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from manyviews.operations.check.findings import Group

TORCHVISION = "torchvision does not fit this torch"
REMEDY = "call featurestore.system.torchvision_ops.ensure_importable() before importing it"
_OF_CUDA = re.compile(rb"\0(lib(?:torch|c10)_cuda\.so)\0")


def torchvision_fits() -> bool:
    """Whether ``import torchvision`` works, as far as the two packages' files show.

    The torchvision wheel on PyPI is linked with CUDA libraries of torch, which a CPU build of torch
    does not have; importing it then raises RuntimeError. The commands of this package declare the
    missing operators first. Takes milliseconds, because neither package is imported.
    """
    torch, torchvision = _folder("torch"), _folder("torchvision")
    if torch is None or torchvision is None:
        return True
    for suffix in EXTENSION_SUFFIXES:
        extension = torchvision / f"_C{suffix}"
        if extension.is_file():
            needed = set(_OF_CUDA.findall(extension.read_bytes()))
            return all((torch / "lib" / name.decode()).exists() for name in needed)
    return True


def torchvision_into(group: Group) -> None:
    """Adds a warning if ``import torchvision`` fails in a program of the user."""
    if not torchvision_fits():
        advice = f"Builds are not affected. In your programs, {REMEDY}."
        group.warn("torchvision", TORCHVISION, advice)


def _folder(package: str) -> Path | None:
    """The folder of an installed package, or None."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
