"""Symbolic links that lead out of a data folder; they are followed only on request."""

from __future__ import annotations

from pathlib import Path

FOLLOW = "--follow-links"
LEAVES = f"a link that leaves the folder, which {FOLLOW} follows"


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is a symbolic link to a target outside ``folder``.

    ``folder`` must be a resolved path, without links. A broken link does not leave the folder.
    """
    if not path.is_symlink():
        return False
    try:
        return not path.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):  # RuntimeError: a symlink loop, before Python 3.13
        return False
