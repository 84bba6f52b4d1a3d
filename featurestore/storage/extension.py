"""A store that grows: what is added is made beside it and put in place when it is complete.

    STORE/records/extension/          a store of its own, made and resumed like any other
    STORE/records/extension/final/    what the store's record, samples and ledger will be

Until ``final/zarr.json`` is there nothing of the store has changed. From then on the extension is
put in place, by renames only, and a killed one is put in place by the next build. In between the
store has no ``zarr.json``: it is whole, before or after, or it is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from featurestore.errors import StoreMismatchError
from featurestore.records import SampleRecord
from featurestore.storage import arrays
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.ledger import ChunkEntry, Ledger, format_entry
from featurestore.storage.store import (
    EXTENSION,
    RECORDS,
    SAMPLES,
    FeatureStore,
    StoreSpec,
    is_store,
    root_document,
)
from featurestore.system import durable
from featurestore.system.refusals import is_file, is_folder

FINAL = f"{EXTENSION}/final"
_FILES = (SAMPLES, Ledger.FILE)


def is_pending(path: Path) -> bool:
    """Whether a complete extension of the store at ``path`` waits to be put in place."""
    return is_store(path / FINAL)


def is_unfinished(path: Path) -> bool:
    """Whether an extension of the store at ``path`` was begun."""
    return not is_pending(path) and is_store(path / EXTENSION)


def finish(base: FeatureStore, made: FeatureStore, fingerprint: Fingerprint) -> None:
    """Makes ``made``, a complete extension of ``base``, part of it. Needs the store's lock.

    Args:
        base: the store.
        made: its extension, which holds either other features of the same samples, or the same
            features of more views or samples.
        fingerprint: the whole store's.

    Raises:
        StorageError: a write failed; the next build goes on.
    """
    path = base.path
    durable.make_folder(path / FINAL)
    adds = not set(base.features) & set(made.features)
    entries = [_merged(base.ledger[e.chunk], e) if adds else e for e in made.ledger.entries]
    dims = {**base.spec.dims, **made.spec.dims} if adds else made.spec.dims
    listing = durable.read_bytes(made.path / SAMPLES, made.path)
    document = root_document(_with_dims(made.spec, dims), fingerprint, listing)
    lines = b"".join(format_entry(e) + b"\n" for e in entries)
    for name, data in ((SAMPLES, listing), (Ledger.FILE, lines)):
        durable.replace_file(path / FINAL / Path(name).name, data)
    durable.replace_file(path / FINAL / "zarr.json", document)
    put_in_place(path)


def put_in_place(path: Path) -> None:
    """Puts a complete extension in place; goes on where an earlier try was killed."""
    durable.remove(path / "zarr.json")
    durable.remove(path / EXTENSION / "zarr.json")
    final = path / FINAL
    record = arrays.parse_document(final, "zarr.json")["attributes"]["manyviews"]
    for feature in record["shape"]["dims"]:
        for name in (feature, f"{RECORDS}/moments/{feature}"):
            _move_folder(path / EXTENSION / name, path / name)
    for name in _FILES:
        source = final / Path(name).name
        if is_file(source):
            durable.move(source, path / name)
    durable.move(final / "zarr.json", path / "zarr.json")
    durable.remove_folder(path / EXTENSION)


def sweep(path: Path) -> None:
    """Removes what is left of an extension that was put in place, or hardly begun."""
    if is_folder(path / EXTENSION) and not is_pending(path) and not is_unfinished(path):
        durable.remove_folder(path / EXTENSION)


def require_same_inputs(base: FeatureStore, record: SampleRecord) -> None:
    """Raises StoreMismatchError unless a sample was read as it was for the store.

    Inputs of a modality that the store or the extension does not look at say nothing, nor does a
    sample that the store does not have.
    """
    if record.index >= base.spec.samples:
        return
    before = base.ledger[record.index // base.spec.chunk].samples[record.index % base.spec.chunk]
    pairs = (
        (before.image_sha256, record.image_sha256),
        (before.text_sha256, record.text_sha256),
    )
    for known, found in pairs:
        if known and found and known != found:
            raise StoreMismatchError(
                base.path,
                f"content of {base.samples[record.index].stem!r}",
                known,
                found,
                "Restore it, and go on with --resume; or build again into another --store.",
            )


def _move_folder(source: Path, target: Path) -> None:
    if is_folder(source):
        if is_folder(target):
            durable.remove_folder(target)
        durable.move(source, target)


def _with_dims(spec: StoreSpec, dims: Mapping[str, int]) -> StoreSpec:
    return replace(spec, dims=dict(dims))


def _merged(base: ChunkEntry, made: ChunkEntry) -> ChunkEntry:
    """One line for a chunk whose features were made in two builds."""
    samples = [_merged_record(*pair) for pair in zip(base.samples, made.samples, strict=True)]
    files = {**base.files, **made.files}
    return ChunkEntry(base.chunk, files, samples, {**base.changed, **made.changed})


def _merged_record(base: SampleRecord, made: SampleRecord) -> SampleRecord:
    """What both know of a sample: images are looked at only where an image feature is made."""
    bad = {b.modality: b for b in (*made.bad, *base.bad)}
    return replace(
        base,
        image_sha256=base.image_sha256 or made.image_sha256,
        bad=tuple(bad[m] for m in ("image", "text") if m in bad),
    )
