"""The members of a tar file and where their bytes are: read once, and kept in the cache folder."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.errors import InputError
from featurestore.system import durable
from featurestore.wording import one_line
from producers.sources.container_files import Container, cached_file

# Raised when the cached form changes.
_FORM = 1
_BLOCK = 512
_READ_BYTES = 2**20


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
        name: its name, with ``/`` between its parts.
        offset: position of its first byte in the tar file.
        size: its size in bytes.
    """

    name: str
    offset: int
    size: int


def members_of(shard: Container) -> list[Member]:
    """The regular files in a tar file, in its order.

    Raises:
        InputError: the file is damaged, truncated or compressed, or it changed while it was read.
    """
    cached = cached_file(["tar", _FORM], [shard], ".json")
    if cached.exists():
        return [Member(*values) for values in json.loads(cached.read_bytes())]
    members = _read(Path(shard.path))
    if not shard.unchanged:
        raise InputError(f"{shard.path} changed while it was read.\nRun the same command again.")
    durable.replace_file(cached, json.dumps(members).encode("ascii"))
    return members


def _read(path: Path) -> list[Member]:
    members: list[Member] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header otherwise
                if info.issparse():
                    raise _damaged(path, f"{info.name!r} is a sparse file")
                if info.isreg():
                    name = info.name.removeprefix("./")
                    members.append(Member(name, info.offset_data, info.size))
            _require_end(path, file, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _damaged(path, one_line(error)) from error
    return members


def _require_end(path: Path, file: Any, offset: int) -> None:
    """Checks that the archive ends where ``tarfile`` stopped, which also stops at damage."""
    file.seek(offset)
    if len(block := file.read(_BLOCK)) < _BLOCK:
        raise _damaged(path, "it ends without a tar file's end marker")
    while block:
        if block.strip(b"\0"):
            raise _damaged(path, f"what follows byte {offset:,} is neither a member nor the end")
        offset += len(block)
        block = file.read(_READ_BYTES)


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is no complete, uncompressed tar file: {problem}.\n"
        "Fetch or write it again; `tar -tf` lists the members that can be read."
    )
