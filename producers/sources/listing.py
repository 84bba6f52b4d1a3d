"""List the files of a folder, and why each other entry is not used. No file is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from featurestore.errors import InputError
from featurestore.system.links import leads_outside
from producers.sources.files import utf8

# (name, reason) of entries that are not used; see ``Scan.left_out``.
LeftOut = list[tuple[str, str]]


def list_folder(
    folder: Path,
    fits: Callable[[str], bool],
    *,
    follow_links: bool,
    recursive: bool = False,
    layout: str = "",
) -> tuple[list[str], LeftOut]:
    """Lists the files of a folder.

    Args:
        folder: the folder.
        fits: function that returns whether a file of this name is used.
        follow_links: whether to use symlinks that leave the folder, as those of DVC, git-annex and
            the hub's cache do.
        recursive: whether subfolders are entered, except for those whose name begins with a dot.
        layout: what was expected, for the messages of errors.

    Returns:
        The names of the files to use, relative to the folder, with ``/`` between their parts; and
        every other entry with its reason. Both are in the file system's order.

    Raises:
        InputError: the folder is missing, unreadable or not a folder.
    """
    root = _resolved(folder, layout)
    names: list[str] = []
    left_out: LeftOut = []
    waiting = [""]
    entered = {root}
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(folder / prefix if prefix else folder):
            name = prefix + utf8(entry.name)
            reason = _objection(entry, fits(entry.name), root, follow_links=follow_links)
            if reason is None:
                names.append(name)
            elif recursive and reason == "directory":
                target = Path(entry.path).resolve()
                if target in entered:  # a symlink to a folder that is entered anyway
                    left_out.append((name, reason))
                elif not follow_links and not target.is_relative_to(root):
                    left_out.append((name, "outside"))
                else:
                    entered.add(target)
                    waiting.append(name + "/")
            else:
                left_out.append((name, reason))
    return names, left_out


def _resolved(folder: Path, layout: str) -> Path:
    """The folder with symlinks resolved; raises InputError if it is not a folder."""
    try:
        root = folder.resolve(strict=True)
        is_folder = root.is_dir()
    except FileNotFoundError:
        raise InputError(f"The data folder {folder} does not exist.\n{layout}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a symlink loop, before Python 3.13
        raise InputError(f"The data folder {folder} cannot be read: {error}") from error
    if not is_folder:
        raise InputError(f"{folder} is not a folder.\n{layout}")
    return root


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The folder's entries, in the file system's order."""
    try:
        # A str path gives str names: bytes that are not UTF-8 survive as surrogate escapes.
        with os.scandir(str(folder)) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"The data folder {folder} cannot be read: {error.strerror}") from error


def _objection(
    entry: os.DirEntry[str], fits: bool, root: Path, *, follow_links: bool
) -> str | None:
    """Why an entry cannot be part of a sample, or None if it can."""
    if entry.name.startswith("."):
        return "dotfile"
    if not entry.is_symlink():
        # The listing has the entry's type: no system call per file is needed.
        if entry.is_file(follow_symlinks=False):
            return None if fits else "suffix"
        return "directory" if entry.is_dir(follow_symlinks=False) else "not-a-file"
    try:
        mode = entry.stat().st_mode  # of the link's target
    except OSError:
        return "dangling" if fits else "suffix"
    if fits and not follow_links and leads_outside(Path(entry.path), root):
        return "outside"
    if stat.S_ISDIR(mode):
        return "directory"
    if not fits:
        return "suffix"
    return None if stat.S_ISREG(mode) else "not-a-file"
