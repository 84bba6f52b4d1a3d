"""The labels and the split of a collection, from the collection itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from featurestore.errors import BadSampleError, ConfigError, InputError
from featurestore.imdb.genres import CLASS_NAMES, genres_vector
from featurestore.labels.encode import encode_labels, read_classes
from featurestore.labels.files import SplitOf, first_difference
from featurestore.labels.label_set import MULTI_LABEL, LabelSet
from featurestore.labels.splitting import OUTSIDE, draw_split, named_parts
from producers import decode
from producers.sources import files
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.scan import Scan

FROM_COLLECTION = {"from": "collection"}


def labels_of(scanned: Scan, classes: Path | None = None) -> LabelSet:
    """Reads the labels of a collection; those of MM-IMDb are its 23 genres.

    Args:
        scanned: the collection.
        classes: a JSON file with the names and order of the classes, or None.

    Raises:
        ConfigError: the collection has no labels, or the classes of MM-IMDb are to be others.
        InputError: labels are of several kinds, not among the classes, or cannot be read.
    """
    collection = scanned.collection
    if collection.kind == MM_IMDB:
        if classes is not None:
            raise ConfigError(
                "MM-IMDb has the paper's 23 classes, and no --classes.\nFor others, read it as a "
                'folder, in a TOML file for --config: [collection] kind = "folder", '
                f'path = "{collection.path}", text_key = "plot", labels = "genres"'
            )
        rows = [genres_vector(document)[0] for document in documents(scanned)]
        return LabelSet(MULTI_LABEL, CLASS_NAMES, np.stack(rows))
    if scanned.labels is None:
        raise ConfigError(_without_labels(collection))
    return encode_labels(
        scanned.labels(),
        place_of(scanned),
        classes=None if classes is None else read_classes(classes),
        name=collection.labels or "value",
    )


def _without_labels(collection: CollectionConfig) -> str:
    return (
        f"The collection {collection.path} (kind {collection.kind}) has no labels.\n"
        'Name the column or key that holds them, as in labels = "genre", in the table [collection] '
        "of a TOML file for --config,\nor put the images into folders of their classes."
    )


def split_of(scanned: Scan) -> SplitOf | None:
    """The part of each sample and its origin, as the collection defines them; None if it does not.

    Raises:
        InputError: a part is not called train, val or test.
    """
    if scanned.splits is None:
        return None
    parts = named_parts(scanned.splits(), place_of(scanned))
    return None if (parts == OUTSIDE).all() else SplitOf(parts, dict(FROM_COLLECTION))


def drawn_split(labels: LabelSet, fractions: Sequence[float], seed: int) -> SplitOf:
    """A split by fractions, with about the same share of each label in every part."""
    origin = {"from": "fractions", "fractions": list(fractions), "seed": seed}
    return SplitOf(draw_split(labels, fractions, seed), origin)


def scan_for(collection: CollectionConfig, ids: Sequence[str], store: Path) -> Scan:
    """Scans a collection and checks that its samples are those of a store, in their order.

    Raises:
        InputError: its samples differ from those of the store.
    """
    scanned = scan_collection(collection)
    found = [sample.stem for sample in scanned.samples]
    if found != list(ids):
        raise InputError(
            f"{collection.path} {first_difference(found, ids)}.\n"
            f"Name the collection that {store} was built from."
        )
    return scanned


def place_of(scanned: Scan) -> Callable[[int], str]:
    """Function that returns the row number and id of a sample, for messages."""
    samples = scanned.samples
    return lambda at: f"row {at:,} ({samples[at].stem!r:.80})"


def documents(scanned: Scan) -> Iterator[object]:
    """The parsed synopsis of each sample of MM-IMDb, None if it cannot be read."""
    for sample in scanned.samples:
        try:
            path = files.text_path(scanned.path, sample)
            yield decode.document(files.read_capped(path, files.MAX_TEXT_BYTES))
        except BadSampleError:
            yield None
