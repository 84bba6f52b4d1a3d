"""Fast checks before writing to a store or creating one, made before slow preparations."""

from __future__ import annotations

import errno
from pathlib import Path

from featurestore.errors import CorruptStoreError
from featurestore.storage import arrays
from featurestore.storage.codecs import REWRITTEN
from featurestore.storage.shape import MOMENTS
from featurestore.storage.space import nearest_existing
from featurestore.storage.store import RECORDS, FeatureStore
from featurestore.system.contents import size_of
from featurestore.system.locks import require_locks
from featurestore.system.refusals import is_folder, named_errors, require_writable


def require_sound(store: FeatureStore) -> None:
    """Refuses to write to a store that is damaged, rewritten or not writable.

    It checks documents, lengths of files and permissions, but reads no rows, so that it is fast
    enough to run before slow preparations. It changes nothing.

    Raises:
        CorruptStoreError: a document differs from the build's, or a committed file is missing or
            has another length; a build must not continue a damaged store.
        StorageError: a folder is not writable, or a file's status cannot be read.
    """
    for group in (RECORDS, MOMENTS):
        arrays.parse_document(store.path, f"{group}/zarr.json")
    for name in store.features:
        codec = arrays.check_array_document(store.path, store.spec.moments(name))
        for array, actual in (
            (store.array(name).name, store.array(name).codec),
            (store.spec.moments(name).name, codec),
        ):
            if actual == REWRITTEN:
                advice = "Restore the array, or build again into another --store."
                problem = "its codecs are not those of the build"
                raise CorruptStoreError(f"{array}/zarr.json", problem, advice=advice)
    for entry in store.ledger.entries:
        for file, (size, _) in entry.files.items():
            actual_size = size_of(store.path, file, entry.chunk)
            if actual_size != size:
                problem = f"{actual_size} bytes, expected {size}"
                raise CorruptStoreError(file, problem, chunk=entry.chunk)
    for folder in ("", RECORDS, *array_names(store)):
        require_writable(store.path / folder)


def array_names(store: FeatureStore) -> list[str]:
    """The folders of a store's arrays, relative to the store."""
    spec = store.spec
    return [array.name for n in store.features for array in (spec.feature(n), spec.moments(n))]


def require_place(path: Path, *, needs_locks: bool = True) -> None:
    """Refuses a path where no store can be created; creates nothing.

    Args:
        path: the folder of the store.
        needs_locks: whether to refuse a file system without locks.

    Raises:
        StorageError: the nearest existing path above is not a writable folder, or its file system
            has no locks.
    """
    parent = nearest_existing(path)  # ``path`` itself if it is an existing empty folder
    with named_errors(path):
        if not is_folder(parent):
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder")
    require_writable(parent)
    if needs_locks:
        require_locks(parent)
