"""Tar files of samples, as the library WebDataset reads them: the kind ``webdataset``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BadSampleError, ConfigError, InputError
from featurestore.records import Sample
from featurestore.samples import SampleList
from producers import decode
from producers.sources import files
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container, find_files
from producers.sources.folder import image_suffixes, text_of
from producers.sources.ids import require_ids
from producers.sources.scan import Label, Scan, modalities_of
from producers.sources.tars.index import Member, members_of
from producers.sources.tars.reading import FILE, KEY, NONE, TarPlaces, read_member

# Members that are taken where ``[collection]`` names none.
_TEXT, _LABELS, _JSON = "txt", "cls", "json"
_UNNAMED_SHOWN = 8


@dataclass(slots=True)
class _Group:
    """The consecutive members of one key."""

    shard: int
    key: str
    members: dict[str, Member]


def scan(collection: CollectionConfig) -> Scan:
    """Scans the members of tar files; those of one key are one sample.

    Returns:
        The samples, in the order of the tar files and of their members.

    Raises:
        ConfigError: a named member is in no sample.
        InputError: a tar file is missing or damaged; a key occurs twice; or a sample has neither an
            image nor a text.
    """
    shards = [Container.of(path) for path in find_files(collection.path)]
    left_out: list[tuple[str, str]] = []
    groups = [g for number, s in enumerate(shards) for g in _groups(number, s, left_out)]
    kinds = Counter(kind for group in groups for kind in group.members)
    _require_named(collection, kinds)
    places = _places(collection, shards, groups)
    has = places.table[:, :, 0] != NONE
    require_ids([g.key for g in groups], lambda i: _origin(shards, groups[i]))
    empty = np.flatnonzero(~has.any(1))
    if len(empty):
        raise _no_input(shards, groups[int(empty[0])], len(empty))
    if not groups:
        raise InputError(f"No member of {collection.path} is an image or a text.")
    labels = collection.labels or (_LABELS if kinds[_LABELS] else None)
    return Scan(
        collection=collection,
        samples=SampleList.of(Sample(i, group.key) for i, group in enumerate(groups)),
        places=places,
        modalities=modalities_of(images=bool(has[:, 0].any()), texts=bool(has[:, 1:].any())),
        left_out=tuple(sorted(left_out)),
        labels=None if labels is None else _Values(shards, groups, labels).labels,
        splits=None
        if collection.split is None
        else _Values(shards, groups, collection.split).splits,
    )


def _groups(number: int, shard: Container, left_out: list[tuple[str, str]]) -> Iterator[_Group]:
    """The samples of a tar file; consecutive members with one key are one sample."""
    group: _Group | None = None
    for member in members_of(shard):
        folder, slash, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if not stem or not kind or name.startswith("."):
            left_out.append((member.name, "dotfile" if name.startswith(".") else "suffix"))
            continue
        key, kind = folder + slash + stem, kind.lower()
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(number, key, {})
        if kind in group.members:
            raise InputError(
                f"{member.name!r} occurs twice in {shard.path}: write the tar file again."
            )
        group.members[kind] = member
    if group is not None:
        yield group


def _origin(shards: Sequence[Container], group: _Group) -> str:
    name = next(iter(group.members.values())).name
    return f"{name!r} in {Path(shards[group.shard].path).name}"


def _require_named(collection: CollectionConfig, kinds: Counter[str]) -> None:
    """Refuses a named member that no sample has, if no sample has a JSON member either."""
    named = (collection.image, *collection.text, collection.labels, collection.split)
    for name in named:
        in_json = kinds[_JSON] and name != collection.image
        if name is not None and not kinds[name.lower()] and not in_json:
            seen = ", ".join(kind for kind, _ in kinds.most_common(_UNNAMED_SHOWN))
            raise ConfigError(
                f"[collection] names {name!r}, which no sample of {collection.path} has.\n"
                f"Its members: {seen}."
            )
    if collection.id is not None:
        raise ConfigError(
            "[collection] id is for tables: the id of a tar file's sample is its key, the name of "
            "its members up to the first dot."
        )


def _no_input(shards: Sequence[Container], group: _Group, count: int) -> InputError:
    more = f", and {count - 1:,} more samples" if count > 1 else ""
    return InputError(
        f"The sample of {_origin(shards, group)} has neither an image nor a text{more}; its "
        f"members: {', '.join(group.members)}.\n"
        'Name the member, or the key of the .json member, of its text in [collection]: text = "…".'
    )


def _places(
    collection: CollectionConfig, shards: Sequence[Container], groups: Sequence[_Group]
) -> TarPlaces:
    """Where the inputs of the samples are."""
    texts = collection.text or (_TEXT,)
    table = np.zeros((len(groups), 1 + len(texts), 3), np.int64)
    for row, group in zip(table, groups, strict=True):
        members = group.members
        image = _image_of(collection, shards, group)
        if image is not None:
            row[0] = FILE, image.offset, image.size
        for number, name in enumerate(texts, start=1):
            if name.lower() in members:
                row[number] = (FILE, *members[name.lower()][1:])
            elif collection.text and _JSON in members:
                row[number] = (KEY, *members[_JSON][1:])
    shard_of = np.fromiter((group.shard for group in groups), np.int64, len(groups))
    return TarPlaces(collection, shards, shard_of, texts, table)


def _image_of(
    collection: CollectionConfig, shards: Sequence[Container], group: _Group
) -> Member | None:
    """The image of a sample: the named member, or the one whose suffix is that of an image."""
    if collection.image is not None or collection.text:
        return None if collection.image is None else group.members.get(collection.image.lower())
    suffixes = image_suffixes()
    found = [kind for kind in group.members if "." + kind.rpartition(".")[2] in suffixes]
    plain = [kind for kind in found if "." not in kind] or found
    if len(plain) > 1:
        raise ConfigError(
            f"The sample of {_origin(shards, group)} has several images: {', '.join(plain)}.\n"
            f'Name one in [collection]: image = "{plain[0]}".'
        )
    return group.members[plain[0]] if plain else None


class _Values:
    """Labels or splits: a member's content, or the value of a key of the JSON member."""

    def __init__(self, shards: Sequence[Container], groups: Sequence[_Group], name: str) -> None:
        self._shards, self._name = shards, name
        wanted = (name.lower(), _JSON)
        self._members = [
            (g.shard, next(((k, g.members[k]) for k in wanted if k in g.members), None))
            for g in groups
        ]

    def labels(self) -> list[Label]:
        """The label of every sample; a member that is a whole number is an integer."""
        return [self._label(value) for value in self._read()]

    def splits(self) -> list[str | None]:
        """The split of every sample."""
        values = list(self._read())
        wrong = next((v for v in values if not (v is None or isinstance(v, str))), None)
        if wrong is not None:
            raise InputError(f"The split {self._name!r} is a string, found {wrong!r}.")
        return [value or None for value in values]

    def _label(self, value: Any) -> Label:
        listed = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, (str, int, float)) for item in listed):
            raise InputError(
                f"The label {self._name!r} is a string, a number or a list of strings, found "
                f"{str(value)[:60]!r}."
            )
        if isinstance(value, list):
            return [str(item) for item in listed if item is not None and item != ""]
        label: Label = None if value == "" else int(value) if isinstance(value, bool) else value
        return label

    def _read(self) -> Iterator[Any]:
        for shard, found in self._members:
            if found is None:
                yield None
                continue
            kind, member = found
            container = self._shards[shard]
            try:
                data = read_member(container, member.offset, member.size, files.MAX_TEXT_BYTES)
                if kind == self._name.lower() and kind != _JSON:
                    yield _member_value(text_of(data).strip())
                    continue
                document = decode.document(data) if data else {}
            except BadSampleError as error:
                raise InputError(f"{member.name!r} in {container.path}: {error}.") from error
            yield document.get(self._name) if isinstance(document, dict) else None


def _member_value(text: str) -> Any:
    """The value of a member: JSON lists and whole numbers, as WebDataset's writers write them."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return int(text) if text.lstrip("-").isdecimal() and str(int(text)) == text else text
