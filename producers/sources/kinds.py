"""Scan a collection of any kind."""

from __future__ import annotations

from pathlib import Path

from producers.sources import pairs
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.scan import Scan


def scan_collection(collection: CollectionConfig) -> Scan:
    """Scans a collection: finds its samples and where their inputs are, and decodes none of them.

    Raises:
        ConfigError: the collection's description does not fit what is there.
        InputError: the collection is missing or unreadable, or holds no sample.
    """
    if collection.kind == MM_IMDB:
        return pairs.scan(Path(collection.path), follow_links=collection.follow_links)
    if collection.kind == "folder":
        from producers.sources import folder

        return folder.scan(collection)
    if collection.kind == "table":
        from producers.sources.tables import table

        return table.scan(collection)
    if collection.kind == "imagefolder":
        from producers.sources.tables import imagefolder

        return imagefolder.scan(collection)
    if collection.kind == "webdataset":
        from producers.sources.tars import webdataset

        return webdataset.scan(collection)
    from producers.sources.tables import huggingface

    return huggingface.scan(collection)
