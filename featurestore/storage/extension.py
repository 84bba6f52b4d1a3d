"""Extends a store: the addition is built in a separate store and merged when it is complete.

    STORE/records/extension/          a separate store, built and resumed like any other
    STORE/records/extension/final/    the future record, sample list and ledger of the store

The store does not change until ``final/zarr.json`` exists. From then on the extension is merged, by
renames only; if that is interrupted, the next build finishes it. During the merge the store has no
``zarr.json``, so that readers see the old store, the new store, or no store at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from featurestore.errors import CorruptStoreError, StoreMismatchError
from featurestore.records import Modality, SampleRecord
from featurestore.storage import arrays
from featurestore.storage.entries import ChunkEntry, format_entry
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import Ledger
from featurestore.storage.shape import MOMENTS
from featurestore.storage.store import (
    EXTENSION,
    SAMPLES,
    FeatureStore,
    is_store,
    root_document,
)
from featurestore.system import durable, removal
from featurestore.system.contents import read_bytes
from featurestore.system.refusals import is_file, is_folder

FINAL = f"{EXTENSION}/final"
_FILES = (SAMPLES, Ledger.FILE)


def is_pending(path: Path) -> bool:
    """Whether a complete extension of the store at ``path`` waits to be merged."""
    return is_store(path / FINAL)


def is_unfinished(path: Path) -> bool:
    """Whether an extension of the store at ``path`` was started but is not complete."""
    return not is_pending(path) and is_store(path / EXTENSION)


@contextmanager
def naming() -> Iterator[None]:
    """Names a damaged file of an extension by its path in the store that is extended."""
    try:
        yield
    except CorruptStoreError as e:
        raise CorruptStoreError(f"{EXTENSION}/{e.file}", e.problem, chunk=e.chunk) from e


def finish(base: FeatureStore, made: FeatureStore, fingerprint: Fingerprint) -> None:
    """Merges ``made``, a complete extension of ``base``, into it. Needs the store's lock.

    Args:
        base: the store.
        made: its extension, which holds either other features of the same samples, or the same
            features of more views or samples.
        fingerprint: the fingerprint of the merged store.

    Raises:
        StorageError: a write failed; the next build continues the merge.
    """
    path = base.path
    durable.make_folder(path / FINAL)
    adds = not set(base.features) & set(made.features)
    entries = [_merged(base.ledger[e.chunk], e) if adds else e for e in made.ledger.entries]
    dims = {**base.spec.dims, **made.spec.dims} if adds else made.spec.dims
    listing = read_bytes(made.path / SAMPLES, made.path)
    modalities = {**base.spec.modalities, **made.spec.modalities}
    spec = replace(made.spec, dims=dict(dims), modalities=modalities)
    document = root_document(spec, fingerprint, listing)
    lines = b"".join(format_entry(e) + b"\n" for e in entries)
    for name, data in ((SAMPLES, listing), (Ledger.FILE, lines)):
        durable.replace_file(path / FINAL / Path(name).name, data)
    durable.replace_file(path / FINAL / "zarr.json", document)
    put_in_place(path)


def put_in_place(path: Path) -> None:
    """Merges a complete extension by renames; continues a merge that was interrupted."""
    removal.remove(path / "zarr.json")
    removal.remove(path / EXTENSION / "zarr.json")
    final = path / FINAL
    record = arrays.parse_document(final, "zarr.json")["attributes"]["manyviews"]
    for feature in record["shape"]["dims"]:
        for name in (feature, f"{MOMENTS}/{feature}"):
            _move_folder(path / EXTENSION / name, path / name)
    for name in _FILES:
        source = final / Path(name).name
        if is_file(source):
            removal.move(source, path / name)
    removal.move(final / "zarr.json", path / "zarr.json")
    removal.remove_folder(path / EXTENSION)


def sweep(path: Path) -> None:
    """Removes the remains of an extension that was merged, or that has no ``zarr.json`` yet."""
    if is_folder(path / EXTENSION) and not is_pending(path) and not is_unfinished(path):
        removal.remove_folder(path / EXTENSION)


def require_same_inputs(base: FeatureStore, record: SampleRecord) -> None:
    """Raises StoreMismatchError if an input of a sample has changed since the store was built.

    Inputs that the store or the extension does not read, and samples that the store does not have,
    are not compared. Of an input that could not be read, only its absence is known to differ.
    """
    if record.index >= base.spec.samples:
        return
    before = base.ledger[record.index // base.spec.chunk].samples[record.index % base.spec.chunk]
    for modality in get_args(Modality):
        known, new = (_state(each, modality) for each in (before, record))
        is_same = known == new or (_UNREADABLE in (known, new) and _ABSENT not in (known, new))
        if not is_same and _UNREAD not in (known, new):
            raise StoreMismatchError(
                base.path,
                f"content of {base.samples[record.index].stem!r}",
                known,
                new,
                "Restore it and continue with --resume, or build again into another --store.",
            )


_UNREAD, _UNREADABLE, _ABSENT = "not read", "not readable", "absent"


def _state(record: SampleRecord, modality: Modality) -> str:
    """The digest of an input, or why there is none."""
    digest = record.image_sha256 if modality == "image" else record.text_sha256
    if digest is None:
        return _ABSENT
    is_bad = any(bad.modality == modality for bad in record.bad)
    return digest or (_UNREADABLE if is_bad else _UNREAD)


def _move_folder(source: Path, target: Path) -> None:
    if is_folder(source):
        if is_folder(target):
            removal.remove_folder(target)
        removal.move(source, target)


def _merged(base: ChunkEntry, added: ChunkEntry) -> ChunkEntry:
    """One ledger entry for a chunk whose features come from two builds."""
    samples = [_merged_record(*pair) for pair in zip(base.samples, added.samples, strict=True)]
    files = {**base.files, **added.files}
    return ChunkEntry(base.chunk, files, samples, {**base.changed, **added.changed})


def _merged_record(base: SampleRecord, added: SampleRecord) -> SampleRecord:
    """Combines two records of a sample; a build without image features has no image digest."""
    bad = {b.modality: b for b in (*added.bad, *base.bad)}
    return replace(
        base,
        image_sha256=added.image_sha256 if base.image_sha256 == "" else base.image_sha256,
        bad=tuple(bad[m] for m in ("image", "text") if m in bad),
    )
