"""Folders of images, texts or both, of any names: the kind ``folder``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from featurestore.errors import BadSampleError, InputError
from featurestore.records import Modality, Sample
from featurestore.samples import SampleList
from featurestore.wording import amount
from producers import decode, formats
from producers.sources import files
from producers.sources.collection import CollectionConfig
from producers.sources.files import name_bytes, native, stat_file
from producers.sources.ids import require_ids
from producers.sources.listing import LeftOut, list_folder
from producers.sources.readers import TextList
from producers.sources.scan import InputStats, Scan, modalities_of
from producers.sources.unused import alike_stems, counted_reasons

TEXT_SUFFIXES = (".txt", ".json")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
_ABSENT = (-3, -3)  # different from the stats of a file, and of a missing one
_LAYOUT = "Expected a folder of images, or of .txt or .json texts, or of both with the same names."


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that are decoded."""
    accepted = set(formats.accepted())
    suffixes = {s for s, name in Image.registered_extensions().items() if name in accepted}
    return frozenset(suffixes - {".json", ".txt"})


def scan(collection: CollectionConfig) -> Scan:
    """Pairs the images and texts of a folder by their path without suffix, which is the id.

    Returns:
        The samples, sorted by id, by code point. A sample may have no image or no text.

    Raises:
        InputError: the folder is missing, unreadable or not a folder, holds neither images nor
            texts, or both but no pair; two files have one id; or no file has the key of labels or
            split.
    """
    names, left_out = list_folder(
        Path(collection.path),
        _fits,
        follow_links=collection.follow_links,
        recursive=collection.recursive,
        layout=_LAYOUT,
    )
    images = {stem_of(n): n for n in sorted(names, reverse=True) if _is_image(n)}
    texts = {stem_of(n): n for n in sorted(names, reverse=True) if not _is_image(n)}
    _require_samples(collection, images, texts, names, left_out)
    stems = sorted(images.keys() | texts.keys())
    require_ids(stems, lambda i: repr(images.get(stems[i]) or texts[stems[i]]))
    both = images.keys() & texts.keys()
    places = FilePlaces(
        collection,
        [images.get(stem) for stem in stems],
        [texts.get(stem) for stem in stems],
    )
    return Scan(
        collection=collection,
        samples=SampleList.of(Sample(i, stem) for i, stem in enumerate(stems)),
        places=places,
        modalities=modalities_of(images=bool(images), texts=bool(texts)),
        left_out=tuple(sorted(left_out)),
        alike=alike_stems(
            {s: n for s, n in images.items() if s not in both},
            {s: n for s, n in texts.items() if s not in both},
        ),
        labels=places.values_of(collection.labels),
        splits=_splits(collection, places, stems),
    )


def _splits(
    collection: CollectionConfig, places: FilePlaces, stems: Sequence[str]
) -> Callable[[], Sequence[str | None]] | None:
    """The parts of the split: a key of the ``.json`` files, else the names of top folders."""
    if collection.split is not None:
        return places.values_of(collection.split)
    names = [stem.partition("/")[0].lower() if "/" in stem else None for stem in stems]
    parts = [name if name in SPLIT_FOLDERS else None for name in names]
    # A class may be called "test": a split has at least one other part.
    if not collection.recursive or len(set(parts) - {None}) < 2:
        return None
    return lambda: parts


def stem_of(name: str) -> str:
    """A name without the last suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() not in TEXT_SUFFIXES


def _fits(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in TEXT_SUFFIXES or suffix in image_suffixes()


def _require_samples(
    collection: CollectionConfig,
    images: Mapping[str, str],
    texts: Mapping[str, str],
    names: Sequence[str],
    left_out: LeftOut,
) -> None:
    """Refuses a folder without samples, with two files of one id, or with files of no pair."""
    if not names:
        reasons = f" {counted_reasons(left_out)}." if left_out else ""
        hint = ""
        if not collection.recursive and any(reason == "directory" for _, reason in left_out):
            hint = "\nSubfolders are entered with recursive = true in [collection]."
        raise InputError(f"No image and no text in {collection.path}.{reasons}\n{_LAYOUT}{hint}")
    chosen = {*images.values(), *texts.values()}
    second = next((name for name in sorted(names) if name not in chosen), None)
    if second is not None:
        other = (images if _is_image(second) else texts)[stem_of(second)]
        raise InputError(
            f"{other!r} and {second!r} in {collection.path} have the same id, "
            f"{stem_of(second)!r}: rename or remove one of them."
        )
    if images and texts and not images.keys() & texts.keys():
        raise InputError(
            f"{collection.path} holds {amount(len(images), 'image')} and "
            f"{amount(len(texts), 'text')}, but no image and text of the same name, such as "
            f"{min(images.values())!r} and {min(texts.values())!r}.\n"
            "Give the texts the names of their images, or move one kind away."
        )


@dataclass(frozen=True, slots=True)
class FilePlaces:
    """Files below a folder.

    Attributes:
        collection: the collection.
        images: for each sample its image's path relative to the folder, or None.
        texts: for each sample its text's path relative to the folder, or None.
    """

    collection: CollectionConfig
    images: Sequence[str | None]
    texts: Sequence[str | None]

    @property
    def source(self) -> Mapping[str, Any]:
        """See :class:`producers.sources.scan.Places`."""
        return {
            "kind": "files",
            "root": str(Path(self.collection.path).resolve()),
            "text_key": self.collection.text_key,
            "rule": self.collection.clean_rule,
        }

    def where(self, sample: Sample) -> list[str | None]:
        """The paths of the sample's image and text."""
        return [self.images[sample.index], self.texts[sample.index]]

    def names(self, sample: Sample) -> tuple[str, str]:
        """The paths of the sample's image and text; the id where there is none."""
        image, text = self.where(sample)
        return image or sample.stem, text or sample.stem

    def sizes(self, modality: Modality) -> list[int]:
        """The sizes of the files; -1 for a missing one."""
        sizes: list[int] = self.stats()[:, 0 if modality == "image" else 2].tolist()
        return sizes

    def gone(self) -> bool:
        """Whether none of the first thousand files is there any more."""
        folder = Path(self.collection.path)
        listed = [name for name in (*self.images[:1000], *self.texts[:1000]) if name is not None]
        return not any((folder / native(name)).exists() for name in listed)

    def values_of(self, key: str | None) -> Callable[[], list[Any]] | None:
        """Function that reads the values under a key of the ``.json`` files; None without a key.

        Raises InputError if no sample has such a file. A file that cannot be read has no value.
        """
        if key is None:
            return None
        if not any(name is not None and name.lower().endswith(".json") for name in self.texts):
            raise InputError(
                f"[collection] names the key {key!r}, but no sample of {self.collection.path} has "
                "a .json file.\nLeave the key out, or write it into the samples' .json files."
            )
        return lambda: [self._value(name, key) for name in self.texts]

    def _value(self, name: str | None, key: str) -> Any:
        if name is None or not name.lower().endswith(".json"):
            return None
        path = Path(self.collection.path) / native(name)
        try:
            document = decode.document(files.read_capped(path, files.MAX_TEXT_BYTES))
        except BadSampleError:
            return None  # the build reports it, and training leaves the sample out
        return document.get(key) if isinstance(document, dict) else None

    def stats(self) -> InputStats:
        """Sizes in bytes and modification times in ns of all files."""
        folder = os.fsencode(Path(self.collection.path)) + b"/"
        stats = np.empty((len(self.images), 4), np.int64)
        for index, names in enumerate(zip(self.images, self.texts, strict=True)):
            stats[index] = [
                number
                for name in names
                for number in (_ABSENT if name is None else stat_file(folder + name_bytes(name)))
            ]
        return stats


class FileReader:
    """Reads files below a folder.

    Args:
        values: ``FilePlaces.source``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._root = Path(values["root"])
        self._key, self._rule = values["text_key"], values["rule"]

    def image(self, sample: Sample, where: Any) -> bytes | None:  # noqa: ARG002
        """The bytes of the image's file; see :class:`Reader`."""
        name = where[0]
        if name is None:
            return None
        return files.read_capped(self._root / native(name), files.MAX_IMAGE_BYTES)

    def texts(self, sample: Sample, where: Any) -> TextList | None:  # noqa: ARG002
        """The texts in the file; see :class:`Reader`."""
        name = where[1]
        if name is None:
            return None
        data = files.read_capped(self._root / native(name), files.MAX_TEXT_BYTES)
        if name.lower().endswith(".txt"):
            return text_list([text_of(data)], self._rule)
        return json_texts(data, [self._key], self._rule)


def text_of(data: bytes) -> str:
    """The text of a ``.txt`` file: UTF-8, without byte order mark and line breaks at its end.

    Raises:
        BadSampleError: ``not-utf8``.
    """
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadSampleError("not-utf8", str(error)[:200]) from None


def json_texts(data: bytes, keys: Sequence[str], rule: str) -> TextList | None:
    """The texts under some keys of a JSON object; None if there are none.

    Raises:
        BadSampleError: ``not-utf8``, ``not-json``, ``not-an-object`` or ``text-type``.
    """
    parsed = decode.document(data) if data else {}
    if not isinstance(parsed, dict):
        raise BadSampleError("not-an-object", f"found {type(parsed).__name__}")
    values: list[object] = []
    for key in keys:
        value = parsed.get(key)
        values += value if isinstance(value, list) else [value]
    wrong = [value for value in values if not (value is None or isinstance(value, str))]
    if wrong:
        shown = json.dumps(wrong[0])[:60]
        raise BadSampleError("text-type", f"a text is a string or a list of strings, found {shown}")
    return text_list([value for value in values if isinstance(value, str)], rule)


def text_list(texts: Sequence[str], rule: str) -> TextList | None:
    """The texts that are not empty; None if there are none."""
    kept = [text for text in texts if text]
    return TextList(kept, rule) if kept else None
