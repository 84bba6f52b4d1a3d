"""Class folders, or images with a metadata file: the kind ``imagefolder``.

The convention is that of the library ``datasets``. Without metadata the name of an image's folder
is its label; the folders ``train``, ``validation`` and ``test`` at the top are splits.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from featurestore.errors import InputError
from featurestore.records import Sample
from featurestore.samples import SampleList
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container
from producers.sources.folder import FilePlaces, image_suffixes, stem_of
from producers.sources.ids import require_ids
from producers.sources.listing import LeftOut, list_folder
from producers.sources.recognize import METADATA
from producers.sources.scan import Label, Scan
from producers.sources.tables.arrow import ArrowPlaces
from producers.sources.tables.columns import Known
from producers.sources.tables.table import cached_places, ids_of, require_pyarrow, scan_rows
from producers.sources.unused import counted_reasons

SPLITS = ("train", "val", "valid", "validation", "dev", "test")
_FILE_NAME = "file_name"
_LAYOUT = "Expected folders of images, named after their classes, or a metadata file beside images."


def scan(collection: CollectionConfig) -> Scan:
    """Scans the images below a folder; their paths without suffix are the ids, in sorted order.

    Raises:
        ConfigError: a column of the metadata is missing or has a wrong type.
        InputError: there is no image, two images have one id, or the metadata lists a file that is
            not there.
    """
    names, left_out = list_folder(
        Path(collection.path),
        _fits,
        follow_links=collection.follow_links,
        recursive=True,
        layout=_LAYOUT,
    )
    metadata = sorted(name for name in names if PurePosixPath(name).name in METADATA)
    images = sorted(name for name in names if PurePosixPath(name).name not in METADATA)
    if not images:
        reasons = f" {counted_reasons(left_out)}." if left_out else ""
        raise InputError(f"No image in {collection.path}.{reasons}\n{_LAYOUT}")
    if metadata:
        return _with_metadata(collection, images, metadata, left_out)
    return _class_folders(collection, images, left_out)


def _fits(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in image_suffixes() or name in METADATA


def split_of(name: str) -> str | None:
    """The split that the first folder of a path names, or None."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 and parts[0] in SPLITS else None


def _label_of(name: str) -> str | None:
    """The name of the folder of an image, or None if that is the top or a split."""
    parts = PurePosixPath(name).parts[1 if split_of(name) else 0 : -1]
    return parts[-1] if parts else None


def _class_folders(collection: CollectionConfig, images: Sequence[str], left_out: LeftOut) -> Scan:
    if collection.text or collection.image or collection.id or collection.labels:
        raise InputError(
            f"{collection.path} has no metadata file, so it has no columns to name in "
            "[collection].\nExpected metadata.csv, metadata.jsonl or metadata.parquet in it."
        )
    images = sorted(images, key=stem_of)
    ids = [stem_of(name) for name in images]
    require_ids(ids, lambda i: repr(images[i]))
    labels: list[Label] = [_label_of(name) for name in images]
    splits = [split_of(name) for name in images]
    return Scan(
        collection=collection,
        samples=SampleList.of(Sample(i, id_) for i, id_ in enumerate(ids)),
        places=FilePlaces(collection, images, [None] * len(images)),
        modalities=("image",),
        left_out=tuple(sorted(left_out)),
        labels=(lambda: labels) if any(labels) else None,
        splits=(lambda: splits) if any(splits) else None,
    )


def _with_metadata(
    collection: CollectionConfig,
    images: Sequence[str],
    metadata: Sequence[str],
    left_out: LeftOut,
) -> Scan:
    """Scans the rows of the metadata, which may be in one file or in one per folder."""
    require_pyarrow("A metadata file")
    from producers.sources.tables.converting import convert

    folder = Path(collection.path)
    if len({PurePosixPath(name).suffix for name in metadata}) > 1:
        raise InputError(f"{folder} has metadata files of several formats: {', '.join(metadata)}.")
    sources = [Container.of(folder / name) for name in metadata]
    converted = convert(collection, sources, Known((), (_FILE_NAME,), always_image=True))
    places = cached_places(replace(collection, order="given"), sources, converted)
    names = _file_names(places, metadata)
    _require_listed(places, names, set(images))
    order = np.array(sorted(range(len(names)), key=lambda row: stem_of(names[row])), np.int64)
    found = scan_rows(
        replace(places, order=order),
        ids=ids_of(places.rows, "id") if "id" in converted.names else [stem_of(n) for n in names],
        labels=converted.names.get("labels") and "labels",
        split=converted.names.get("split") and "split",
        form=converted.labels,
        splits=(lambda: list(map(split_of, names))) if any(map(split_of, names)) else None,
    )
    listed = set(names)
    unlisted = [(name, "unlisted") for name in images if name not in listed]
    return replace(found, collection=collection, left_out=tuple(sorted([*left_out, *unlisted])))


def _file_names(places: ArrowPlaces, metadata: Sequence[str]) -> list[str]:
    """The path of each row's image, relative to the top folder."""
    folders = [posixpath.dirname(name) for name in metadata]
    names = []
    for row, path in enumerate(places.rows.paths() or [None] * len(places.rows)):
        if path is None:
            raise InputError(f"{places.row_name(row)} of {metadata[0]} has no {_FILE_NAME}.")
        names.append(posixpath.normpath(posixpath.join(folders[places.source_of[row]], path)))
    return names


def _require_listed(places: ArrowPlaces, names: Sequence[str], images: AbstractSet[str]) -> None:
    """Refuses metadata that lists files which are not there, or are no images."""
    missing = [row for row, name in enumerate(names) if name not in images]
    if missing:
        more = f", and {len(missing) - 1:,} more rows" if len(missing) > 1 else ""
        raise InputError(
            f"The metadata of {places.collection.path} lists {names[missing[0]]!r} in "
            f"{places.row_name(missing[0])}{more}: there is no such image.\n"
            f"{_FILE_NAME} is a path relative to the folder of the metadata file."
        )
