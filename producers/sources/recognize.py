"""Recognize the kind of a collection by what is at its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath

from featurestore.errors import InputError
from producers.sources import pairs
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.folder import TEXT_SUFFIXES, image_suffixes

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SAVED = ("dataset_dict.json", "dataset_info.json")
# Entries of a folder that are looked at; enough to tell the kinds apart.
_LOOKED_AT = 10_000
_SYNOPSES_READ = 5


def recognize(path: Path | str, *, follow_links: bool = False) -> CollectionConfig:
    """The collection at ``path``, by what is there.

    Args:
        path: a folder, a file, or a pattern of files.
        follow_links: whether to use symbolic links that lead out of a folder.

    Raises:
        InputError: there is nothing, nothing of a known kind, or it may be of two kinds.
    """
    place = Path(path)
    kind = _kind_of_folder(place) if place.is_dir() else _kind_of_file(str(path), place)
    return CollectionConfig(kind=kind, path=str(path), follow_links=follow_links)


def _kind_of_file(path: str, place: Path) -> str:
    lower = path.lower()
    if lower.endswith((".tar.gz", ".tgz", ".zip")):
        raise InputError(
            f"{path} is compressed, so that single files in it cannot be read.\n"
            "Unpack it, and give --data the folder."
        )
    is_pattern = any(character in path for character in "*?[{")
    if not (place.exists() or is_pattern):
        raise InputError(
            f"There is nothing at {path}.\nA data set of the hub is named in a TOML file: "
            'kind = "huggingface" and path = "owner/name" in a table [collection].'
        )
    if lower.endswith(".tar"):
        return "webdataset"
    if lower.endswith(TABLE_SUFFIXES):
        return "table"
    raise InputError(
        f"{path} is no collection: expected a folder, a table "
        f"({', '.join(TABLE_SUFFIXES)}) or tar files (.tar)."
    )


def _kind_of_folder(folder: Path) -> str:
    names = [path.name for path in islice(_entries(folder), _LOOKED_AT)]
    if any(name in _SAVED for name in names):
        return "huggingface"
    if any(name in METADATA for name in names):
        return "imagefolder"
    suffixes = [PurePath(name).suffix.lower() for name in names if not name.startswith(".")]
    if ".tar" in suffixes:
        raise InputError(f"{folder} holds tar files: name them, as in --data '{folder}/*.tar'.")
    images = any(suffix in image_suffixes() for suffix in suffixes)
    if images and _has_plots(folder, names):
        return MM_IMDB
    below = _images_below(folder)
    if images and below:
        raise InputError(
            f"{folder} holds images, and so does its subfolder {below!r}: is it a folder of "
            "images, or one of class folders?\n"
            'Say which in a TOML file: kind = "folder" (with recursive = true, if subfolders '
            'count) or kind = "imagefolder" in a table [collection].'
        )
    if below:
        return "imagefolder"
    if images or any(suffix in TEXT_SUFFIXES for suffix in suffixes):
        return "folder"
    tables = sorted({suffix for suffix in suffixes if suffix in TABLE_SUFFIXES})
    advice = (
        f"Name the tables, as in --data '{folder}/*{tables[0]}'."
        if tables
        else ("Expected images, texts, class folders of images, or a saved data set.")
    )
    raise InputError(f"{folder} is no collection that is recognized.\n{advice}")


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read: {error.strerror}") from error


def _images_below(folder: Path) -> str | None:
    """A subfolder that holds an image, directly or one level below (train/cats/1.jpg), or None."""
    for sub in islice(sorted(p for p in _entries(folder) if p.is_dir()), _LOOKED_AT):
        if sub.name.startswith("."):
            continue
        for path in islice(sub.glob("**/*"), _LOOKED_AT):
            if path.suffix.lower() in image_suffixes():
                return sub.name
    return None


def _has_plots(folder: Path, names: list[str]) -> bool:
    """Whether the synopses beside posters have the key ``plot``, as those of MM-IMDb."""
    stems = {PurePath(n).stem for n in names if n.endswith(pairs.IMAGE_SUFFIXES)}
    paired = sorted(
        n for n in names if n.endswith(pairs.TEXT_SUFFIXES) and PurePath(n).stem in stems
    )
    for name in paired[:_SYNOPSES_READ]:
        try:
            document = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(document, dict) and "plot" in document:
            return True
    return False
