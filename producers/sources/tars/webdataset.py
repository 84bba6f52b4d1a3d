"""Tar files of samples, as the library WebDataset reads them: the kind ``webdataset``."""

from __future__ import annotations

import json
import re
from array import array
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
from producers.sources.container_files import Container, Integers, find_files
from producers.sources.folder import image_suffixes, text_of
from producers.sources.ids import require_ids
from producers.sources.scan import Label, Scan, modalities_of
from producers.sources.tars.index import Member, members_of
from producers.sources.tars.reading import FILE, KEY, NONE, TarPlaces, read_member

# Members that are taken where ``[collection]`` names none.
_TEXT, _LABELS, _JSON = "txt", "cls", "json"
_UNNAMED_SHOWN = 8
_WHOLE = re.compile("-?(0|[1-9][0-9]{0,17})")


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
    packed = _Packed(collection, shards)
    for number, shard in enumerate(shards):
        for group in _groups(number, shard, packed.left_out):
            packed.add(group)
    _require_named(collection, packed.kinds)
    if not packed.keys:
        raise InputError(f"No member of {collection.path} is an image or a text.")
    shard_of, table = packed.arrays()
    require_ids(packed.keys, lambda i: _place(shards, shard_of, i))
    if packed.first_empty is not None:
        raise _no_input(shards, packed.first_empty, packed.empty)
    inputs = table[:, : 1 + len(packed.texts)]
    has = inputs[:, :, 0] != NONE
    labels = packed.labels if collection.labels or packed.kinds[_LABELS] else None
    split = collection.split
    return Scan(
        collection=collection,
        samples=SampleList.of(Sample(i, key) for i, key in enumerate(packed.keys)),
        places=TarPlaces(collection, shards, shard_of, packed.texts, inputs),
        modalities=modalities_of(images=bool(has[:, 0].any()), texts=bool(has[:, 1:].any())),
        left_out=tuple(sorted(packed.left_out)),
        labels=_Values(shards, shard_of, table[:, -2], labels).labels if labels else None,
        splits=_Values(shards, shard_of, table[:, -1], split).splits if split else None,
    )


class _Packed:
    """The samples as numbers: a million groups of members would take a gigabyte.

    Attributes:
        texts: the members or keys of the texts.
        labels: the member or key of the labels.
        keys: the key of every sample.
        kinds: the number of samples that have each kind of member.
        left_out: see ``Scan.left_out``.
        first_empty: the first sample without any input, or None.
        empty: the number of samples without any input.
    """

    def __init__(self, collection: CollectionConfig, shards: Sequence[Container]) -> None:
        self.texts = collection.text or (_TEXT,)
        self.labels = collection.labels or _LABELS
        self.keys: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.left_out: list[tuple[str, str]] = []
        self.first_empty: _Group | None = None
        self.empty = 0
        self._collection, self._shards = collection, shards
        self._numbers = array("q")

    def add(self, group: _Group) -> None:
        """Adds a sample."""
        image = _image_of(self._collection, self._shards, group)
        places = [(NONE, 0, 0) if image is None else (FILE, image.offset, image.size)]
        named = bool(self._collection.text)
        places += [_member_place(group, name, in_json=named) for name in self.texts]
        if not any(place[0] for place in places):
            self.empty += 1
            self.first_empty = self.first_empty or group
        places.append(_member_place(group, self.labels, in_json=bool(self._collection.labels)))
        places.append(_member_place(group, self._collection.split or "", in_json=True))
        self.keys.append(group.key)
        self.kinds.update(group.members.keys())
        self._numbers.append(group.shard)
        for place in places:
            self._numbers.extend(place)

    def arrays(self) -> tuple[Integers, Integers]:
        """Of every sample the number of its tar file, int64 ``[N]``, and places, ``[N, P, 3]``.

        The places are (form, offset, size) of its image, texts, labels and split.
        """
        numbers = np.frombuffer(self._numbers, np.int64).reshape(len(self.keys), -1)
        return numbers[:, 0], numbers[:, 1:].reshape(len(self.keys), -1, 3)


def _member_place(group: _Group, name: str, *, in_json: bool) -> tuple[int, int, int]:
    """Form, offset and size of a member, or of the JSON member that may have this key."""
    member = group.members.get(name.lower())
    if member is not None:
        return FILE, member.offset, member.size
    member = group.members.get(_JSON) if in_json else None
    return (NONE, 0, 0) if member is None else (KEY, member.offset, member.size)


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


def _place(shards: Sequence[Container], shard_of: Integers, index: int) -> str:
    """What messages call a sample: its number in its tar file, from 0."""
    number = index - int(np.searchsorted(shard_of, shard_of[index]))
    return f"sample {number} of {Path(shards[shard_of[index]].path).name}"


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

    def __init__(
        self, shards: Sequence[Container], shard_of: Integers, places: Integers, name: str
    ) -> None:
        self._shards, self._shard_of, self._places = shards, shard_of, places
        self._name = name

    def labels(self) -> list[Label]:
        """The label of every sample; a member that is a whole number is an integer."""
        return [self._label(value) for value in self._read()]

    def splits(self) -> list[str | None]:
        """The name of the split of every sample; None for a sample without one.

        Raises:
            InputError: a member is neither a string, a whole number nor null.
        """
        values = list(self._read())
        wrong = next((v for v in values if not (v is None or isinstance(v, (str, int)))), None)
        if wrong is not None:
            raise InputError(f"The split {self._name!r} is a string, found {wrong!r}.")
        return [None if value in (None, "") else str(value) for value in values]

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
        for shard, (form, offset, size) in zip(
            self._shard_of.tolist(), self._places.tolist(), strict=True
        ):
            if form == NONE:
                yield None
                continue
            container = self._shards[shard]
            try:
                data = read_member(container, offset, size, files.MAX_TEXT_BYTES)
                if form == FILE:
                    yield _member_value(text_of(data).strip())
                    continue
                document = decode.document(data) if data else {}
            except BadSampleError as error:
                where = f"byte {offset:,} of {container.path}"
                raise InputError(f"{self._name!r} cannot be read at {where}: {error}.") from error
            yield document.get(self._name) if isinstance(document, dict) else None


def _member_value(text: str) -> Any:
    """The value of a member: JSON lists and whole numbers, as WebDataset's writers write them."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return int(text) if _WHOLE.fullmatch(text) else text
