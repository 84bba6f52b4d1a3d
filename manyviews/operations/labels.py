"""The published label files of a data folder, from its samples and their genres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from featurestore.errors import BadSampleError
from featurestore.imdb.embeddings_manifest import views_and_seed
from featurestore.imdb.labels import LabelReport, write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX
from producers import decode
from producers.sources import source
from producers.sources.source import Scan


def labels(
    data_dir: Path | str,
    out_dir: Path | str,
    *,
    follow_links: bool = False,
    embeddings_dir: Path | str | None = None,
    views: int | None = None,
    seed: int | None = None,
    prefix: str = PREFIX,
) -> LabelReport:
    """Writes the label files of a data folder, and noisy labels of every view if asked for.

    Args:
        data_dir: folder of posters and synopses, whose genres are read.
        out_dir: folder of the label files; created.
        follow_links: use symbolic links that lead out of ``data_dir``.
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
    samples = source.scan(Path(data_dir), follow_links=follow_links)
    stems = [sample.stem for sample in samples.samples]
    report = write_labels(stems, _documents(samples), Path(out_dir))
    if beside is not None:
        write_augmented_labels(Path(out_dir), beside, views, prefix, seed)
    return replace(report, left_out=samples.left_out)


def _documents(samples: Scan) -> Iterator[object]:
    """Each sample's parsed synopsis, None if it cannot be read."""
    for sample in samples.samples:
        try:
            path = source.text_path(samples.data_dir, sample)
            yield decode.document(source.read_capped(path, source.MAX_TEXT_BYTES))
        except BadSampleError:
            yield None
