"""The published label files of a data folder, from its samples and their genres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore.errors import BadSampleError, ConfigError
from featurestore.imdb.embeddings_manifest import views_and_seed
from featurestore.imdb.labels import LabelReport, write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.readers import Synopsis
from producers.sources.scan import Inputs, Scan


def labels(
    collection: CollectionConfig,
    out_dir: Path | str,
    *,
    embeddings_dir: Path | str | None = None,
    views: int | None = None,
    seed: int | None = None,
    prefix: str = PREFIX,
) -> LabelReport:
    """Writes the label files of a data folder, and noisy labels of every view if asked for.

    Args:
        collection: the collection whose genres are read.
        out_dir: folder of the label files; created.
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
    samples = scan_collection(collection)
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


@contextmanager
def labels_folder(labels_dir: Path | None, collection: CollectionConfig | None) -> Iterator[Path]:
    """Yields a folder of label files: ``labels_dir``, or a temporary one for a collection.

    Raises:
        ConfigError: neither or both are given.
    """
    if (labels_dir is None) == (collection is None):
        found = "neither" if labels_dir is None else "both"
        raise ConfigError(
            "Labels come from --labels-dir, or from the inputs (--data-dir, --data, --config): "
            f"expected one of them, found {found}."
        )
    if labels_dir is not None:
        yield labels_dir
        return
    assert collection is not None
    with TemporaryDirectory(prefix="manyviews-labels-") as folder:
        labels(collection, folder)
        yield Path(folder)
