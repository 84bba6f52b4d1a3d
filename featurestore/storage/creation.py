"""Create and erase stores, and recognize what a path holds.

A creation writes the root's ``zarr.json`` last, and a deletion removes it first: without it, the
store does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from featurestore.errors import InputError
from featurestore.records import FEATURES, Sample, is_feature_name
from featurestore.samples import SampleList
from featurestore.storage import arrays, extension
from featurestore.storage.commits import COMMITS
from featurestore.storage.files import LocalFiles, writer_name
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.shape import MOMENTS, StoreSpec
from featurestore.storage.space import folder_bytes
from featurestore.storage.store import (
    EXTENSION,
    LOCK,
    RECORDS,
    RUNS,
    SAMPLES,
    root_document,
)
from featurestore.storage.writer import StoreWriter
from featurestore.system import durable, removal
from featurestore.system.locks import FileLock
from featurestore.system.refusals import is_file, is_folder, named_errors, status_of

# Entries that belong to a store, besides ``records`` itself, its runs, and other features' arrays.
_ROOT_ENTRIES = {"zarr.json", *FEATURES}
_RECORDS_ENTRIES = {
    "zarr.json",
    "moments",
    *(Path(f).name for f in (EXTENSION, SAMPLES, Ledger.FILE, COMMITS)),
}

State = Literal["absent", "store", "unfinished"]


def state_of(path: Path) -> State:
    """The state of ``path``; ``unfinished`` is an interrupted creation.

    Raises:
        InputError: ``path`` is something else, which must not be written to.
        StorageError: the system refused access.
    """
    if status_of(path) is None and not path.is_symlink():
        return "absent"
    if not is_folder(path):
        raise InputError(f"{path} is not a folder. Choose another --store.")
    with named_errors(path):
        entries = {p.name for p in path.iterdir()}
    if not entries:
        return "absent"
    if "zarr.json" in entries and is_folder(path / RECORDS):
        return "store"
    if extension.is_pending(path):
        return "store"
    unknown = {e for e in entries - {RECORDS} if not e.startswith(".") and not _is_own(path / e)}
    if not unknown and _is_started(path):
        return "unfinished"
    raise InputError(
        f"{path} is not empty and is not a feature store: it holds {min(unknown or entries)!r}.\n"
        "Choose another --store."
    )


def _is_own(entry: Path) -> bool:
    """Whether an entry of a store's folder was created by a writer.

    The paper's features are recognized by name. Other features may have any name, and no record
    lists them after an interrupted creation or deletion: they are recognized by content.
    """
    name = durable.target_name(entry.name)
    return name in _ROOT_ENTRIES or (
        is_feature_name(entry.name) and arrays.holds_only_an_array(entry)
    )


def _is_started(path: Path) -> bool:
    """Whether a writer has locked ``path``, or was killed while it created the lock's folder."""
    if is_file(path / LOCK):
        return True
    created = {str(p.relative_to(path)) for p in path.rglob("*")}
    # Another worker may have created the lock after the first look.
    return created <= {RECORDS, RUNS} or is_file(path / LOCK)


def create(
    path: Path,
    spec: StoreSpec,
    fingerprint: Fingerprint,
    samples: Sequence[Sample],
    lock: FileLock,
) -> StoreWriter:
    """Creates an empty store at ``path``, replacing an earlier store or its remains.

    An interrupted creation or deletion may have left files of other features or samples; they are
    erased first, or they would stay in the new store. Without file locks several workers may create
    the store at the same time: each then writes the files that are missing, with the same bytes.
    """
    files = LocalFiles(path, "" if lock.exists else writer_name())
    if lock.exists:
        erase(path)
    listing = SampleList.of(samples).lines
    documents = {
        f"{array.name}/zarr.json": arrays.array_document(array, axes)
        for name in spec.dims
        for array, axes in (
            (spec.feature(name), ("sample", "view", "dim")),
            (spec.moments(name), ("chunk", "moment", "dim")),
        )
    }
    documents |= {f"{group}/zarr.json": arrays.group_document({}) for group in (MOMENTS, RECORDS)}
    documents |= {SAMPLES: listing, Ledger.FILE: b""}
    documents["zarr.json"] = root_document(spec, fingerprint, listing)
    for name, data in documents.items():
        durable.make_folder((path / name).parent)
        if lock.exists:
            files.put_all({name: [data]})
        else:
            files.create(name, data)
    return StoreWriter(path, lock)


def discard_lock(path: Path) -> None:
    """Removes what :func:`take_lock` created at ``path``, if nothing else is there.

    The caller holds the lock alone; a process that waits for it creates the file again.
    """
    names = {str(p.relative_to(path)) for p in path.rglob("*")}
    if names <= {RECORDS, RUNS, LOCK}:
        removal.remove_folder(path)


def erase(path: Path) -> None:
    """Deletes the store at ``path``, except for its logs and its lock, which the caller holds.

    The root's ``zarr.json`` is removed first, after that of a complete extension, which would
    otherwise be merged: an interrupted deletion leaves no store behind. Files that do not belong to
    the store are not deleted.
    """
    if extension.is_pending(path):
        removal.remove(path / extension.FINAL / "zarr.json")
    removal.remove(path / "zarr.json")
    for entry in _own_entries(path):
        if entry.is_dir() and not entry.is_symlink():
            removal.remove_folder(entry)
        else:
            removal.remove(entry)


def erasable_bytes(path: Path) -> int:
    """The number of bytes that :func:`erase` would free."""
    return sum(map(folder_bytes, _own_entries(path)))


def _own_entries(path: Path) -> list[Path]:
    """The entries that a writer created at ``path``, except for logs and lock."""
    own = [entry for entry in path.iterdir() if _is_own(entry)]
    if is_folder(path / RECORDS):
        own += [
            entry
            for entry in (path / RECORDS).iterdir()
            if durable.target_name(entry.name) in _RECORDS_ENTRIES
        ]
    return sorted(own)
