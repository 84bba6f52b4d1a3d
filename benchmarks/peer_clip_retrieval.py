"""The command ``clip-retrieval``, with a small model of ours known to open_clip.

Started by ``benchmarks/peers.py``: all arguments but the first two are the command's own. The first
is the model's configuration, the second the file of marks: the command is ready when both its
copies of the model are loaded, and done when its last file is written.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import packaging.version

from benchmarks.peer_recipe import mark
from featurestore.system.torchvision_ops import ensure_importable

# Both here, because the command's own processes import this file, too. clip-anytorch takes nothing
# but ``packaging`` from ``pkg_resources``, which the setuptools that torch requires have no more.
ensure_importable()
sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
sys.modules["pkg_resources"].packaging = packaging  # type: ignore[attr-defined]


def main() -> None:
    """Runs the command."""
    config, marks = sys.argv[1:3]
    sys.argv[1:3] = []
    import open_clip
    from clip_retrieval.cli import main as command
    from clip_retrieval.clip_inference.logger import LoggerWriter
    from clip_retrieval.clip_inference.writer import NumpyWriter

    open_clip.add_model_config(config)
    LoggerWriter.start = _marking("ready", LoggerWriter.start, marks, first=True)
    NumpyWriter.flush = _marking("done", NumpyWriter.flush, marks, first=False)
    command()


def _marking(what: str, method: Any, marks: str, *, first: bool) -> Callable[[Any], None]:
    def marked(self: Any) -> None:
        if first:
            mark(marks, what)
        method(self)
        if not first:
            mark(marks, what)

    return marked


if __name__ == "__main__":
    main()
