"""Moves and removes files and folders, durably: each folder that changes is synced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from featurestore.system import durable
from featurestore.system.refusals import is_folder, named_errors


def move(source: Path, target: Path) -> None:
    """Renames a file or folder within one file system, durably.

    The target's folder is synced first: after a power cut, a file system that records the two
    changes separately may show both names for the file, but never neither.
    """
    with named_errors(target):
        durable.hook("rename", target, 0)
        source.rename(target)
    for folder in {target.parent: None, source.parent: None}:
        durable.sync_folder(folder)


def remove(path: Path) -> None:
    """Removes ``path`` durably; does nothing if it does not exist."""
    with named_errors(path):
        durable.hook("unlink", path, 0)
        path.unlink(missing_ok=True)
    if is_folder(path.parent):
        durable.sync_folder(path.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder and everything in it; links inside are removed, never followed."""
    with named_errors(folder):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                remove_folder(Path(entry.path))
            else:
                durable.hook("unlink", Path(entry.path), 0)
                Path(entry.path).unlink()
        durable.hook("rmdir", folder, 0)
        folder.rmdir()
    durable.sync_folder(folder.parent)


def remove_if_empty(folder: Path) -> None:
    """Removes a folder unless something is in it, even if another process puts it there now."""
    with named_errors(folder):
        durable.hook("rmdir", folder, 0)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return
    durable.sync_folder(folder.parent)


def sweep_partials(folder: Path) -> list[Path]:
    """Removes the temporary files that a killed writer left in ``folder``.

    Only safe under the store's lock. Returns the paths of the removed files.
    """
    left = sorted(p for p in folder.iterdir() if p.name.endswith(durable.PARTIAL) and p.is_file())
    for path in left:
        with named_errors(path):
            durable.hook("unlink", path, 0)
            path.unlink()
    if left:
        durable.sync_folder(folder)
    return left
