"""The files that hold many samples: find them by a pattern, recognize a change, and cache them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import BadSampleError, ConfigError, InputError
from featurestore.system import durable
from featurestore.system.cache_folder import cache_folder
from producers.sources.files import stat_file

Integers = npt.NDArray[np.int64]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_INSTALL = "pip install 'manyviews[sources]'"


@dataclass(frozen=True, slots=True)
class Container:
    """A file that holds many samples, as it was when it was scanned.

    Attributes:
        path: path of the file.
        size: size in bytes.
        mtime: modification time in ns.
    """

    path: str
    size: int
    mtime: int

    @classmethod
    def of(cls, path: Path) -> Container:
        """The file as it is now.

        Raises:
            InputError: there is no such file.
        """
        size, mtime = stat_file(bytes(path))
        if size < 0 or not path.is_file():
            raise InputError(f"{path} is not a file that can be read.")
        # Not resolved: paths in a table are relative to the folder of a link to it.
        return cls(str(path.absolute()), size, mtime)

    def values(self) -> list[Any]:
        """Plain values, of which ``Container(*values)`` is the same."""
        return [self.path, self.size, self.mtime]

    @property
    def unchanged(self) -> bool:
        """Whether the file still has this size and modification time."""
        return stat_file(os.fsencode(self.path)) == (self.size, self.mtime)

    @property
    def state(self) -> int:
        """A number that differs if the file may have changed."""
        digest = hashlib.sha256(f"{self.size} {self.mtime}".encode("ascii")).digest()
        return int.from_bytes(digest[:8], "big", signed=True)

    def changed(self) -> BadSampleError:
        """The error for a sample of a file that is gone, or has other content than was scanned."""
        detail = f"{self.path} is gone, or has changed since it was scanned"
        return BadSampleError("missing", detail)


def states(containers: Sequence[Container], of: Integers) -> Integers:
    """The state of the container of each sample, by its number: int64 ``[N]``."""
    return np.array([c.state for c in containers], np.int64)[of]


def find_files(pattern: str) -> list[Path]:
    """The files that a pattern means: ``*``, ``?``, ``[a-c]``, ``{0000..0011}`` and ``{a,b}``.

    Returns:
        The files; those of one ``*`` pattern are sorted, and braces keep their order.

    Raises:
        InputError: there is no such file.
    """
    if Path(pattern).exists():
        return [Path(pattern)]
    files: list[Path] = []
    for name in _expanded(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        if not found or not Path(found[0]).exists():
            raise InputError(
                f"There is no file {name}.\n"
                "Give the path of a file, or a pattern such as 'data/*.tar' or '{0000..0011}.tar'."
            )
        files += (Path(file) for file in found if Path(file) not in files)
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """The pattern with every pair of braces replaced by each of its alternatives."""
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    span = _RANGE.fullmatch(braces[1])
    alternatives = braces[1].split(",")
    if span is not None:
        width = len(span[1])
        alternatives = [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    for alternative in alternatives:
        yield from _expanded(pattern[: braces.start()] + alternative + pattern[braces.end() :])


def cached_file(what: Any, containers: Sequence[Container], suffix: str) -> Path:
    """Where to cache what is derived from some files; removes what an earlier state gave.

    Args:
        what: plain values that describe what is derived.
        containers: the files as they are now.
        suffix: suffix of the cached file.

    Raises:
        ConfigError: this user has no folder for caches.
        StorageError: the folder cannot be created.
    """
    folder = cache_folder()
    if folder is None:
        raise ConfigError(
            "There is no folder for the cached form of this collection: this user has no home.\n"
            "Set XDG_CACHE_HOME to the absolute path of a folder."
        )
    folder /= "tables"
    durable.make_folder(folder)
    subject = _digest([what, [container.path for container in containers]])
    state = _digest([container.values() for container in containers])
    path = folder / f"{subject}-{state}{suffix}"
    if not path.exists():
        for earlier in folder.glob(f"{subject}-*{suffix}"):
            earlier.unlink(missing_ok=True)
    return path


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()[:24]


def missing_package(name: str, what: str) -> ConfigError:
    """The error for a library that is not installed."""
    return ConfigError(f"{what} needs the package {name}, which is not installed.\n{_INSTALL}")
