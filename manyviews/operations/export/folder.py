"""The output folder of an export, under a temporary name until it is complete."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from featurestore.errors import ConfigError, InputError, ManyViewsError
from featurestore.storage.digests import FileFacts, HashingFile
from featurestore.system import durable, removal
from featurestore.system.durable import PARTIAL, PartialFile
from featurestore.system.locks import FileLock
from featurestore.system.refusals import is_file

# Written last. Readers of a folder of Parquet files ignore names that start with an underscore.
DESCRIPTION = "_export.json"
# Locked while an export runs, and removed once the description is written. A folder that has
# neither file was not created by an export.
_MARK = ".manyviews-export"


class Sink(io.RawIOBase):
    """A file object for a writer, which hashes what is written."""

    def __init__(self, file: PartialFile) -> None:
        self._file = HashingFile(file)
        self._is_done = False

    def writable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The number of bytes written so far."""
        return self._file.size

    def write(self, data: Any) -> int:
        """Appends ``data``, any contiguous buffer; returns its size in bytes."""
        view = memoryview(data).cast("B")
        # A writer that is discarded after an error may still flush its buffer: ignore that.
        if not self._is_done:
            self._file.write(view)
        return len(view)

    def finish(self) -> FileFacts:
        """Ignores later writes; returns size and digest of the file."""
        self._is_done = True
        return self._file.facts


class OutFolder:
    """The files of an export under construction.

    Attributes:
        path: the folder under its temporary name.
        files: size and digest of each file by name, in the order of writing.
        shards: number of rows (for webdataset: samples) in each shard by file name, in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, FileFacts] = {}
        self.shards: dict[str, int] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[Sink]:
        """Opens a new file, which is durable after the block.

        Raises:
            StorageError: the file could not be written.
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
    """Creates a folder that is renamed to ``out_dir`` after the block, or removed if it raises.

    The remains of a killed export under the temporary name are removed first.

    Raises:
        InputError: ``out_dir`` is not empty, or the temporary name is taken.
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
            f"{partial} is needed for the export, and was not created by an export.\n"
            "Move it away, or choose another --out-dir."
        )
    durable.make_folder(partial)
    # On file systems without locks, the last rename decides between two exports.
    lock = FileLock(mark, out_dir, required=False)
    try:
        _empty(partial)
        yield OutFolder(partial)
        removal.remove(mark)
        removal.move(partial, out_dir)
    except BaseException:
        # Keep the original error; the next export removes what this could not.
        with suppress(ManyViewsError, OSError):
            removal.remove_folder(partial)
        raise
    finally:
        lock.release()


def check_free_name(out_dir: Path) -> None:
    """Checks that ``out_dir`` is absent or an empty folder.

    Raises:
        ConfigError: it is not the name of a folder.
        InputError: it is a mount point or not empty.
    """
    if not out_dir.name:
        raise ConfigError(f"--out-dir {out_dir} is not the name of a folder.")
    if out_dir.is_mount():
        raise InputError(
            f"{out_dir} is a mount point, which a finished folder cannot replace.\n"
            "Name a folder in it."
        )
    if out_dir.exists() and not _is_empty_folder(out_dir):
        raise InputError(
            f"{out_dir} is not empty. An export creates its folder.\n"
            "Choose another --out-dir, or remove it."
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _empty(partial: Path) -> None:
    for entry in sorted(partial.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            removal.remove_folder(entry)
        elif entry.name != _MARK:
            removal.remove(entry)
