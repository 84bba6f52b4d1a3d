"""Tar files of samples, as the library WebDataset reads them: the kind ``webdataset``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import BadSampleError, ConfigError, InputError
from featurestore.records import Modality, Sample
from featurestore.samples import SampleList
from featurestore.system.refusals import is_absent, refusal
from producers import decode
from producers.sources import files
from producers.sources.collection import CollectionConfig
from producers.sources.containers.containers import Container, find_files, states
from producers.sources.containers.tar_index import Member, members_of
from producers.sources.folder import image_suffixes, json_texts, text_list, text_of
from producers.sources.ids import require_ids
from producers.sources.readers import TextList
from producers.sources.scan import InputStats, Label, Scan, modalities_of

# Members that are taken where ``[collection]`` names none.
_TEXT, _LABELS, _JSON = "txt", "cls", "json"
_NONE, _FILE, _KEY = 0, 1, 2
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
    has = places.table[:, :, 0] != _NONE
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
            row[0] = _FILE, image.offset, image.size
        for number, name in enumerate(texts, start=1):
            if name.lower() in members:
                row[number] = (_FILE, *members[name.lower()][1:])
            elif collection.text and _JSON in members:
                row[number] = (_KEY, *members[_JSON][1:])
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


@dataclass(frozen=True, slots=True)
class TarPlaces:
    """Members of tar files.

    Attributes:
        collection: the collection.
        shards: the tar files.
        shard_of: the number of each sample's tar file.
        texts: the members or keys of the texts.
        table: int64 ``[N, 1 + len(texts), 3]``: for the image, then each text, whether it is absent
            (0), a member (1) or a key of a JSON member (2), and the member's offset and size.
    """

    collection: CollectionConfig
    shards: Sequence[Container]
    shard_of: npt.NDArray[np.int64]
    texts: Sequence[str]
    table: npt.NDArray[np.int64]

    @property
    def source(self) -> Mapping[str, Any]:
        """See :class:`producers.sources.scan.Places`."""
        return {
            "kind": "tar",
            "shards": [shard.values() for shard in self.shards],
            "texts": list(self.texts),
            "rule": self.collection.clean_rule,
        }

    def where(self, sample: Sample) -> list[Any]:
        """The tar file, and (form, offset, size) of the image and each text."""
        return [int(self.shard_of[sample.index]), *self.table[sample.index].tolist()]

    def names(self, sample: Sample) -> tuple[str, str]:
        """The key and the name of the tar file, twice."""
        shard = Path(self.shards[self.shard_of[sample.index]].path).name
        return f"{sample.stem} in {shard}", f"{sample.stem} in {shard}"

    def sizes(self, modality: Modality) -> list[int]:
        """The sizes of the members; -1 where there is none."""
        part = self.table[:, :1] if modality == "image" else self.table[:, 1:]
        present = (part[:, :, 0] != _NONE).any(1)
        sizes: list[int] = np.where(present, part[:, :, 2].sum(1), -1).tolist()
        return sizes

    def gone(self) -> bool:
        """Whether a tar file is gone or has changed."""
        return not all(shard.unchanged for shard in self.shards)

    def stats(self) -> InputStats:
        """The offsets of the members and the states of the tar files."""
        stats = np.empty((len(self.table), 4), np.int64)
        stats[:, 0] = self.table[:, 0, 1]
        stats[:, 2] = self.table[:, 1, 1]
        stats[:, 1] = stats[:, 3] = states(self.shards, self.shard_of)
        return stats


class TarReader:
    """Reads members of tar files at their offsets.

    Args:
        values: ``TarPlaces.source``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._shards = [Container(*shard) for shard in values["shards"]]
        self._texts: list[str] = values["texts"]
        self._rule: str = values["rule"]

    def image(self, sample: Sample, where: Any) -> bytes | None:  # noqa: ARG002
        """The bytes of the image's member; see :class:`Reader`."""
        form, offset, size = where[1]
        if form == _NONE:
            return None
        return read_member(self._shards[where[0]], offset, size, files.MAX_IMAGE_BYTES)

    def texts(self, sample: Sample, where: Any) -> TextList | None:  # noqa: ARG002
        """The texts of the members, in order; see :class:`Reader`."""
        found: list[str] = []
        for name, (form, offset, size) in zip(self._texts, where[2:], strict=True):
            if form == _NONE:
                continue
            data = read_member(self._shards[where[0]], offset, size, files.MAX_TEXT_BYTES)
            if form == _FILE:
                found.append(text_of(data))
            else:
                texts = json_texts(data, [name], self._rule)
                found += texts.texts if texts is not None else []
        return text_list(found, self._rule)


def read_member(shard: Container, offset: int, size: int, cap_bytes: int) -> bytes:
    """The bytes of one member of a tar file that has not changed since it was scanned.

    Raises:
        BadSampleError: ``missing``, ``too-large`` or ``unreadable``.
        StorageError: this process or machine has no memory or descriptor left.
    """
    if size > cap_bytes:
        raise BadSampleError("too-large", f"{size:,} bytes; at most {cap_bytes:,}")
    try:
        descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            data = os.pread(descriptor, size, offset)
            now = files.stat_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if is_absent(error):
            raise shard.changed() from None
        if error.errno in files.EXHAUSTED:
            raise refusal(Path(shard.path), error) from error
        raise BadSampleError("unreadable", error.strerror or str(error)) from error
    # Checked after reading: a change before it would have changed the modification time.
    if now != (shard.size, shard.mtime) or len(data) != size:
        raise shard.changed()
    return data


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
