"""The inputs as they are now, for a comparison with those that a store was built from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from featurestore.errors import BadSampleError, InputError
from featurestore.records import Modality
from featurestore.system.links import LEAVES, leads_outside
from featurestore.system.refusals import is_absent, machine_error, refusal
from featurestore.verify.findings import InputVerification, Verification
from featurestore.verify.inputs import CurrentInput, CurrentInputs, verify_inputs
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.inputs import sha256_of
from producers.sources.kinds import scan_collection
from producers.sources.scan import Inputs, Scan

_BLOCK_BYTES = 1 << 20


def compare(
    root: Path,
    collection: CollectionConfig,
    store: Verification,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> InputVerification:
    """Compares every input of the committed samples of a store with a collection.

    Args:
        root: the folder of the store.
        collection: the collection that it was built from.
        store: the result of ``verify``.
        progress: called with (chunks compared, chunks committed) after each chunk.

    Raises:
        InputError: the collection does not exist.
        CorruptStoreError: the store's list of samples is damaged.
        StorageError: the list or an input cannot be read.
    """
    return verify_inputs(root, current_inputs(collection), store, progress=progress)


def current_inputs(collection: CollectionConfig) -> CurrentInputs:
    """A function that reads and hashes the inputs of a sample of the store.

    Raises:
        InputError: the collection does not exist.
    """
    if collection.kind != MM_IMDB:
        return _ScannedInputs(scan_collection(collection))
    data_dir = Path(collection.path)
    if not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist.")
    return _PairFiles(data_dir, follow_links=collection.follow_links)


class _PairFiles:
    """The files of a folder of MM-IMDb, by the names that the store has.

    Like ``verify``, this does not use the code that decides on ``--resume``: all files are read and
    hashed again, even if their sizes and times are unchanged.
    """

    def __init__(self, data_dir: Path, *, follow_links: bool) -> None:
        self._data_dir = data_dir
        self._inside = None if follow_links else data_dir.resolve()

    def __call__(
        self, id_: str, names: tuple[str | None, str | None], modality: Modality
    ) -> CurrentInput:
        name = names[modality == "text"] or id_
        raw = name.encode("utf-8", "surrogateescape")
        path = os.path.join(os.fsencode(self._data_dir), raw)  # noqa: PTH118  bytes
        if self._inside is not None and leads_outside(Path(os.fsdecode(path)), self._inside):
            return CurrentInput(name, problem=LEAVES)
        try:
            digest = _sha256(path)
        except OSError as e:
            if not is_absent(e):  # the file may be unchanged
                raise refusal(Path(os.fsdecode(path)), e) from e
            return CurrentInput(name, problem=e.strerror or str(e))
        return CurrentInput(name, digest, "" if digest else "not a file any more")


def _sha256(path: bytes) -> str:
    """Hex SHA-256 of a regular file; empty for a pipe, device or folder, without waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        digest = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(descriptor)


class _ScannedInputs:
    """The inputs of a collection of any other kind, by the ids that the store has."""

    def __init__(self, found: Scan) -> None:
        self._found = found
        self._inputs = Inputs(found)
        self._index = {sample.stem: sample.index for sample in found.samples}
        self._last = (-1, "")

    def __call__(
        self, id_: str, names: tuple[str | None, str | None], modality: Modality
    ) -> CurrentInput:
        del names  # a store of any other kind has ids only
        index = self._index.get(id_)
        if index is None:
            return CurrentInput(id_, problem="no sample has this id any more")
        last, before = self._last
        if index < last:
            return CurrentInput(id_, problem=f"it came after {before!r}, and now comes before it")
        self._last = (index, id_)
        sample = self._found.samples[index]
        name = self._found.places.names(sample)[modality == "text"]
        try:
            return CurrentInput(name, sha256_of(self._inputs, sample, modality))
        except BadSampleError as e:
            refused = machine_error(e.__cause__)
            if refused is not None and e.reason == "unreadable":
                raise refusal(self._found.path / name, refused) from e
            return CurrentInput(name, problem=f"{e.reason}: {e.detail}")
