"""The folder of files that can be derived again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path | None:
    """``manyviews`` in ``XDG_CACHE_HOME`` or ``~/.cache``; None for a user without a home."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # the specification ignores relative paths
        return named / "manyviews"
    with suppress(RuntimeError):
        return Path.home() / ".cache/manyviews"
    return None
