"""Make torchvision importable where its compiled extension does not load.

PyPI's torchvision wheel is built for CUDA. With a CPU build of torch, its extension finds no CUDA
library, and ``import torchvision`` then fails with ``operator torchvision::nms does not exist``:
its Python half attaches code to two operators that only the extension declares. Declaring them is
enough; nothing in this project calls them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")

# torch forgets a library's operators when the object that declared them is collected.
_declared: torch.library.Library | None = None


def ensure_importable() -> None:
    """Declare torchvision's operators if its extension cannot; then ``import torchvision`` works.

    Call it before the first import of torchvision or of a package that imports it, such as
    transformers. It does nothing if the extension loads, if torchvision is already imported or is
    not installed, and on every call but the first.
    """
    global _declared
    if _declared is not None or "torchvision" in sys.modules:
        return
    path = _extension_path()
    if path is None or _loads(path):
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _declared = library


def _extension_path() -> str | None:
    """Path of torchvision's extension: ``""`` if it has none, None without torchvision."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return None
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in package.submodule_search_locations:
        extension = importlib.machinery.FileFinder(folder, loader).find_spec("_C")
        if extension is not None and extension.origin is not None:
            return extension.origin
    return ""


def _loads(path: str) -> bool:
    """Whether the extension at ``path`` loads; it stays loaded, as torchvision expects."""
    import torch

    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, ImportError):
        return False
    return hasattr(torch.ops.torchvision, "nms")
