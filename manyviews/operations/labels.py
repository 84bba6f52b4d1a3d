"""The published label files of a data folder, from its samples and their genres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import BadSampleError, ConfigError
from featurestore.imdb.embeddings_manifest import views_and_seed
from featurestore.imdb.labels import LabelReport, write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.readers import Synopsis
from producers.sources.recognize import given_collection, require_one
from producers.sources.scan import Inputs, Scan


def labels(
    data_dir: Path | str | None = None,
    out_dir: Path | str | None = None,
    *,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
    embeddings_dir: Path | str | None = None,
    views: int | None = None,
    seed: int | None = None,
    prefix: str = PREFIX,
) -> LabelReport:
    """Writes the label files of a data folder, and noisy labels of every view if asked for.

    Args:
        data_dir: folder of MM-IMDb's posters and synopses, whose genres are read.
        out_dir: folder of the label files; created.
        data: path of a collection whose kind is recognized.
        collection: the description of a collection. Exactly one of ``data_dir``, ``data`` and
            ``collection`` is given.
        follow_links: use symbolic links that lead out of the collection.
        embeddings_dir: where noisy labels are written, beside materialized embeddings; None for
            clean labels only.
        views: views of the noisy labels; None for those of the embeddings, or 70 before they exist.
        seed: of the noise; None for that of the embeddings, or 123 before they exist.
        prefix: what the names of the embeddings begin with.

    Raises:
        ConfigError: ``views`` or ``seed`` is not what the embeddings' manifest says.
        InputError: the folder cannot be read, or no sample has a known genre.
        StorageError: a file could not be written.
    """
    beside = None if embeddings_dir is None else Path(embeddings_dir)
    if beside is not None:
        views, seed = views_and_seed(beside, prefix, views, seed)
    if out_dir is None:
        raise ConfigError("out_dir is missing: name the folder of the label files.")
    require_one(is_needed=True, data_dir=data_dir, data=data, collection=collection)
    given = given_collection(
        data_dir=data_dir, data=data, collection=collection, follow_links=follow_links
    )
    assert given is not None
    samples = scan_collection(given)
    stems = [sample.stem for sample in samples.samples]
    report = write_labels(stems, _documents(samples), Path(out_dir))
    if beside is not None:
        write_augmented_labels(Path(out_dir), beside, views, prefix, seed)
    return report


def _documents(samples: Scan) -> Iterator[object]:
    """Each sample's parsed synopsis, None if it cannot be read."""
    inputs = Inputs(samples)
    for sample in samples.samples:
        try:
            texts = inputs.texts(sample)
        except BadSampleError:
            texts = None
        yield texts.document() if isinstance(texts, Synopsis) else None
