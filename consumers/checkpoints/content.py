"""The SHA-256 of a file's content, cached across processes.

Weights are many gigabytes, so a file is hashed once: its digest is stored in a small file in the
user's cache folder, and is valid as long as device, inode, size and both times of the file are the
same. File names prove nothing: the hub's cache names a file by the content that it had once.

A digest is only cached if the file was last changed some time before it was hashed: file systems
have a time resolution, and a later change within the same step would not be detected.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from featurestore.errors import ManyViewsError
from featurestore.storage.store import record_crc32c
from featurestore.system import durable
from featurestore.system.cache_folder import cache_folder

# The coarsest time resolution of a file system is that of FAT.
_SETTLED_NS = 2_000_000_000
_MOST_BYTES = 4096

_Identity = dict[str, int]

# Digests of this process, used if the cache cannot be written: two features share a checkpoint.
_hashed: dict[tuple[int, ...], str] = {}


def content_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    The file is read unless its digest is cached. A cache that cannot be written is no error.

    Raises:
        OSError: the file cannot be read, or changed while it was read.
    """
    with path.open("rb") as file:
        before = _identity(os.fstat(file.fileno()))
        digest = _known(before)
        if digest:
            return digest
        started_ns = time.time_ns()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _identity(os.fstat(file.fileno()))
    if any(before[name] != after[name] for name in ("size", "mtime_ns")):
        raise OSError(errno.EBUSY, "it changed while it was read")
    if max(after["mtime_ns"], after["ctime_ns"]) < started_ns - _SETTLED_NS:
        _keep(after, digest)
    return digest


def _identity(status: os.stat_result) -> _Identity:
    names = ("dev", "ino", "size", "mtime_ns", "ctime_ns")
    return {name: getattr(status, f"st_{name}") for name in names}


def _entry(identity: _Identity) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    return folder / "sha256" / f"{identity['dev']:x}-{identity['ino']:x}.json"


def _known(identity: _Identity) -> str:
    """The cached digest of a file, or ``""``."""
    key = tuple(identity.values())
    if key not in _hashed:
        path = _entry(identity)
        digest = "" if path is None else _read(path, identity)
        if not digest:
            return ""
        _hashed[key] = digest
    return _hashed[key]


def _read(path: Path, identity: _Identity) -> str:
    """Reads the digest from a cache entry; ``""`` if the entry is invalid or of another file."""
    try:
        # O_NONBLOCK: a FIFO or a device of that name must not block.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return ""
            entry = json.loads(os.read(fd, _MOST_BYTES))
        finally:
            os.close(fd)
        digest = entry.pop("sha256")
        crc32c = entry.pop("crc32c")
        if entry != identity or crc32c != record_crc32c({**identity, "sha256": digest}):
            return ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return str(digest)


def _keep(identity: _Identity, digest: str) -> None:
    _hashed[tuple(identity.values())] = digest
    path = _entry(identity)
    if path is None:
        return
    entry = {**identity, "sha256": digest}
    entry["crc32c"] = record_crc32c(entry)
    with suppress(ManyViewsError, OSError):
        durable.make_folder(path.parent)
        durable.replace_file(path, json.dumps(entry).encode("ascii"))
