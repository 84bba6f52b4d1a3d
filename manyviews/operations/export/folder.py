"""The folder that an export makes: under a temporary name until everything is in it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from featurestore.errors import ConfigError, InputError, ManyViewsError
from featurestore.storage.digests import FileFacts, HashingFile
from featurestore.system import durable
from featurestore.system.durable import PARTIAL, PartialFile
from featurestore.system.locks import FileLock
from featurestore.system.refusals import is_file

# Written last. Readers of a folder of Parquet files skip names that begin with an underscore.
DESCRIPTION = "_export.json"
# Locked while an export is running, and removed when the description is there. A folder with
# neither is not one that an export left behind.
_MARK = ".manyviews-export"


class Sink(io.RawIOBase):
    """What a writer takes for an open file."""

    def __init__(self, file: PartialFile) -> None:
        self._file = HashingFile(file)
        self._is_done = False

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def write(self, data: Any) -> int:
        """Appends ``data``, any contiguous buffer; returns its size in bytes."""
        view = memoryview(data).cast("B")
        # Writers that are thrown away after an error still write what they have.
        if not self._is_done:
            self._file.write(view)
        return len(view)

    def finish(self) -> FileFacts:
        """Takes no more bytes; returns what the file holds."""
        self._is_done = True
        return self._file.facts


class OutFolder:
    """The files of an export under construction.

    Attributes:
        path: where they are for now.
        files: what is there, by name, in the order of writing.
        shards: rows (samples, for webdataset) of each file that holds a part of them, in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, FileFacts] = {}
        self.shards: dict[str, int] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[Sink]:
        """A new file, durable after the block.

        Raises:
            StorageError: it could not be written.
        """
        with durable.open_replace(self.path / name) as file:
            sink = Sink(file)
            try:
                yield sink
            finally:
                facts = sink.finish()
        self.files[name] = facts

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        with self.open(name) as sink:
            sink.write(data)

    def write_json(self, name: str, document: object) -> None:
        """Writes a JSON document; names that are not UTF-8 keep their surrogate escapes."""
        self.write(name, (json.dumps(document, indent=2) + "\n").encode("ascii"))


@contextmanager
def out_folder(out_dir: Path) -> Iterator[OutFolder]:
    """A folder that gets its name when the block is done, and is removed if it raises.

    What a killed export left under the temporary name is removed first.

    Raises:
        InputError: ``out_dir`` is not empty, or something else has the temporary name.
        StoreLockedError: another process is exporting to it.
        StorageError: the file system refused an operation.
    """
    out_dir = out_dir.resolve()
    check_free_name(out_dir)
    partial = out_dir.with_name(out_dir.name + PARTIAL)
    mark = partial / _MARK
    ours = is_file(mark) or is_file(partial / DESCRIPTION)
    if partial.exists() and not (ours or _is_empty_folder(partial)):
        raise InputError(
            f"{partial} is needed for the export, and no export made it.\n"
            "Move it away, or choose another --out-dir."
        )
    durable.make_folder(partial)
    # Where there are no locks, nothing but the last rename keeps two exports apart.
    lock = FileLock(mark, out_dir, required=False)
    try:
        _empty(partial)
        yield OutFolder(partial)
        durable.remove(mark)
        durable.move(partial, out_dir)
    except BaseException:
        # Another error is on its way; the next export sweeps what this leaves.
        with suppress(ManyViewsError, OSError):
            durable.remove_folder(partial)
        raise
    finally:
        lock.release()


def check_free_name(out_dir: Path) -> None:
    """Raises where ``out_dir`` holds something, or cannot be a folder's name."""
    if not out_dir.name:
        raise ConfigError(f"--out-dir {out_dir} is not the name of a folder.")
    if out_dir.is_mount():
        raise InputError(
            f"{out_dir} is a mount point, which cannot be given a folder's name.\n"
            "Name a folder in it."
        )
    if out_dir.exists() and not _is_empty_folder(out_dir):
        raise InputError(
            f"{out_dir} is not empty. An export makes its folder anew.\n"
            "Choose another --out-dir, or remove it."
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _empty(partial: Path) -> None:
    for entry in sorted(partial.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            durable.remove_folder(entry)
        elif entry.name != _MARK:
            durable.remove(entry)
