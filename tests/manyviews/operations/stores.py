"""Stores with synthetic rows and the recorded hashes of a real data folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from featurestore.records import BadInput, Sample, SampleRecord
from featurestore.storage.creation import create
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import take_lock
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
from producers.sources import pairs
from tests.featurestore.stores import make_fingerprint, make_rows

VIEWS = 8
CHUNK = 32
DIMS = {"clip_image": 32, "clip_text": 32}


def store_of(
    path: Path,
    folder: Path,
    *,
    chunks: Sequence[int] = (0, 1),
    bad: Mapping[int, tuple[BadInput, ...]] | None = None,
    read: Sequence[str] = ("image", "text"),
    **fingerprint: str | int,
) -> FeatureStore:
    """A store with the hashes of the ``read`` files of the folder, and synthetic rows."""
    samples = pairs.scan(folder).samples
    spec = StoreSpec(len(samples), VIEWS, CHUNK, DIMS)
    known = make_fingerprint(spec, [s.stem for s in samples])
    known |= {**Simclr().settings(), **Mask().settings(), **fingerprint}
    rows = make_rows(spec)
    records = [
        _record(folder, sample, (bad or {}).get(sample.index, ()), read) for sample in samples
    ]
    with create(path, spec, known, samples, take_lock(path)) as writer:
        for chunk in chunks:
            of = writer.spec.samples_of(chunk)
            part = slice(of.start, of.stop)
            writer.commit_chunk(chunk, {n: r[part] for n, r in rows.items()}, records[part], {})
    return FeatureStore(path)


def _record(
    folder: Path, sample: Sample, bad: tuple[BadInput, ...], read: Sequence[str]
) -> SampleRecord:
    names = {"image": str(sample.image_name), "text": str(sample.text_name)}
    image, text = (
        hashlib.sha256((folder / name).read_bytes()).hexdigest() if modality in read else ""
        for modality, name in names.items()
    )
    return SampleRecord(sample.index, image, text, 1, bad)
