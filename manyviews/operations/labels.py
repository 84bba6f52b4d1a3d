"""The label files of a collection, from its samples and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.imdb.embeddings_manifest import views_and_seed
from featurestore.imdb.label_sets import require_multi_label
from featurestore.imdb.labels import LabelReport, write_augmented_labels, write_labels
from featurestore.imdb.materialize import default_prefix
from featurestore.labels.files import SplitOf, write_label_set, write_split
from featurestore.labels.splitting import check_fractions, part_counts
from manyviews.operations.collection_labels import documents, drawn_split, labels_of, split_of
from producers.sources.collection import MM_IMDB, CollectionConfig, given_collection, require_one
from producers.sources.kinds import scan_collection
from producers.sources.scan import Scan


@dataclass(frozen=True, slots=True)
class CollectionLabels:
    """A summary of the labels that were written for a collection other than MM-IMDb.

    Attributes:
        samples: the number of samples.
        kind: ``multi-label``, ``class`` or ``value``.
        classes: the number of samples of each class, in the order of the columns.
        unlabelled: ids of the samples without a label; their rows are NaN.
        split: the number of samples in each part, and in ``none``; None without a split.
        split_from: ``collection``, ``fractions``, or None.
        left_out: (name, reason) of files that are not used, see ``Scan``.
    """

    samples: int
    kind: str
    classes: Mapping[str, int]
    unlabelled: tuple[str, ...]
    split: Mapping[str, int] | None
    split_from: str | None
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Augment:
    """Where noisy labels are written, and of which views."""

    folder: Path
    prefix: str
    views: int
    seed: int


def labels(
    data_dir: Path | str | None = None,
    out_dir: Path | str | None = None,
    *,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
    classes: Path | str | None = None,
    split: Sequence[float] | None = None,
    split_seed: int = 0,
    embeddings_dir: Path | str | None = None,
    views: int | None = None,
    seed: int | None = None,
    prefix: str | None = None,
) -> LabelReport | CollectionLabels:
    """Writes the label files of a collection, and noisy labels of every view if asked for.

    Args:
        data_dir: folder of MM-IMDb's posters and synopses, whose genres are read.
        out_dir: folder of the label files; created.
        data: path of a collection whose kind is recognized.
        collection: the description of a collection. Exactly one of ``data_dir``, ``data`` and
            ``collection`` is given.
        follow_links: use symbolic links that lead out of the collection.
        classes: JSON file with a list of the classes, in the order of the columns; None for those
            that occur, sorted.
        split: shares of train, dev and test, with sum 1, of which ``split.json`` is drawn so that
            each part has about the same share of each label; None for the split that the
            collection states, if it does.
        split_seed: the seed of that split.
        embeddings_dir: where noisy labels are written, beside materialized embeddings; None for
            clean labels only.
        views: views of the noisy labels; None for those of the embeddings, or 70 before they exist.
        seed: of the noise; None for that of the embeddings, or 123 before they exist.
        prefix: what the names of the embeddings begin with; None for that of the collection's kind.

    Returns:
        A ``LabelReport`` of MM-IMDb, a ``CollectionLabels`` of any other collection.

    Raises:
        ConfigError: an argument is invalid; the collection has no labels; ``views`` or ``seed`` is
            not what the embeddings' manifest says; or noisy labels are asked for of labels that are
            not multi-label.
        InputError: the collection or a label cannot be read, labels are of several kinds, or no
            sample has one (of MM-IMDb, a known genre).
        StorageError: a file could not be written.
    """
    if out_dir is None:
        raise ConfigError("out_dir is missing: name the folder of the label files.")
    require_one(is_needed=True, data_dir=data_dir, data=data, collection=collection)
    inputs = given_collection(
        data_dir=data_dir, data=data, collection=collection, follow_links=follow_links
    )
    assert inputs is not None
    if split is not None:
        check_fractions(split)
    augment = None
    if embeddings_dir is not None:
        beside, prefix = Path(embeddings_dir), prefix or default_prefix(inputs.preset)
        augment = _Augment(beside, prefix, *views_and_seed(beside, prefix, views, seed))
    scanned = scan_collection(inputs)
    report: LabelReport | CollectionLabels
    if inputs.kind == MM_IMDB:
        report = _write_genres(scanned, Path(out_dir), classes, split, split_seed)
    else:
        labelled = None if classes is None else Path(classes)
        report = _write_collection(
            scanned, Path(out_dir), labelled, split, split_seed, noisy=augment is not None
        )
    if augment is not None:
        write_augmented_labels(
            Path(out_dir), augment.folder, augment.views, augment.prefix, augment.seed
        )
    return report


def _write_genres(
    scanned: Scan,
    out_dir: Path,
    classes: Path | str | None,
    split: Sequence[float] | None,
    split_seed: int,
) -> LabelReport:
    if classes is not None:
        labels_of(scanned, Path(classes))  # which refuses them
    stems = [sample.stem for sample in scanned.samples]
    report = write_labels(stems, documents(scanned), out_dir)
    if split is not None:
        write_split(out_dir, stems, drawn_split(labels_of(scanned), split, split_seed))
    return replace(report, left_out=scanned.left_out)


def _write_collection(
    scanned: Scan,
    out_dir: Path,
    classes: Path | None,
    split: Sequence[float] | None,
    split_seed: int,
    *,
    noisy: bool,
) -> CollectionLabels:
    found = labels_of(scanned, classes)
    if noisy:
        require_multi_label(found)
    parts: SplitOf | None
    parts = split_of(scanned) if split is None else drawn_split(found, split, split_seed)
    ids = [sample.stem for sample in scanned.samples]
    write_label_set(out_dir, ids, found, parts)
    known = found.known.tolist()
    return CollectionLabels(
        samples=len(ids),
        kind=found.kind,
        classes=dict(zip(found.classes, found.counts().tolist(), strict=True)),
        unlabelled=tuple(id_ for id_, has in zip(ids, known, strict=True) if not has),
        split=None if parts is None else part_counts(parts.parts),
        split_from=None if parts is None else str(parts.origin["from"]),
        left_out=scanned.left_out,
    )
