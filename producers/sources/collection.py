"""What a collection of images and texts is: its kind, its place and its columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from featurestore.errors import ConfigError

Kind = Literal["mm-imdb", "folder", "table", "imagefolder", "webdataset", "huggingface"]
CleanText = Literal["join", "first", "longest"]
Order = Literal["given", "id"]

KINDS: tuple[str, ...] = get_args(Kind)
MM_IMDB = "mm-imdb"
# The presets of a store: names, labels and digests of the published data set, or of any other.
GENERIC = "generic"

_NAME_THEM = (
    "give --data-dir DIR (MM-IMDb's layout),\n--data PATH (any collection), or [collection] in the "
    "--config file (manyviews.toml by default)."
)
_OPTIONS = {"data_dir": "--data-dir", "data": "--data", "collection": "[collection]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionConfig:
    """Where the samples come from; the table ``[collection]`` of a TOML file.

    Attributes:
        kind: the kind of source, one of ``KINDS``.
        path: a folder, a file, a pattern of files, or the id of a data set of the hub.
        id: column of the ids; None for the kind's own.
        image: column or member of the images.
        text: columns, keys or members of the texts, read in this order.
        labels: column, key or member of the labels.
        split: column or key that names the part of the split.
        order: ``given``, or ``id`` to sort the rows of a table by id.
        recursive: whether subfolders of a ``folder`` are entered.
        text_key: key of the texts in the ``.json`` files of a ``folder``.
        clean_text: which of several texts is the clean one, view 0: all ``join``-ed by a space, the
            ``first``, or the ``longest``; None for the kind's default.
        config: name of the configuration of a hub data set.
        revision: revision of a hub data set.
        splits: names of the splits of a hub data set to read, in this order; empty for all.
        follow_links: whether to use symbolic links that lead out of a folder.
    """

    kind: str
    path: str
    id: str | None = None
    image: str | None = None
    text: tuple[str, ...] = ()
    labels: str | None = None
    split: str | None = None
    order: str = "given"
    recursive: bool = False
    text_key: str = "text"
    clean_text: str | None = None
    config: str | None = None
    revision: str | None = None
    splits: tuple[str, ...] = ()
    follow_links: bool = False

    def __post_init__(self) -> None:
        """Checks the choices.

        Raises:
            ConfigError: a value is not one of its choices, or has no meaning for MM-IMDb.
        """
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("order", self.order, get_args(Order)),
            ("clean_text", self.clean_text, (None, *get_args(CleanText))),
        ):
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ConfigError(f"[collection] {name} is one of {choices}, found {value!r}.")
        if self.kind == MM_IMDB:
            self._require_paper()

    def _require_paper(self) -> None:
        """Refuses keys that have no effect on MM-IMDb, whose layout is fixed."""
        wrong = [
            field.name
            for field in fields(self)
            if field.name not in ("kind", "path", "clean_text", "follow_links")
            and getattr(self, field.name) != field.default
        ]
        wrong += ["clean_text"] if self.clean_text not in (None, "join") else []
        if wrong:
            raise ConfigError(
                f'[collection] sets {", ".join(wrong)}, which kind = "mm-imdb" does not have.\n'
                'Read the files as kind = "folder" with text_key = "plot" instead.'
            )

    @classmethod
    def mm_imdb(cls, data_dir: Path | str, *, follow_links: bool = False) -> CollectionConfig:
        """The published layout: a flat folder of posters and synopses of the same stem."""
        return cls(kind=MM_IMDB, path=str(data_dir), follow_links=follow_links)

    @property
    def preset(self) -> str:
        """``mm-imdb`` or ``generic``: which names, labels and digests a store of it has."""
        return MM_IMDB if self.kind == MM_IMDB else GENERIC

    @property
    def clean_rule(self) -> str:
        """Which of several texts is the clean one."""
        return self.clean_text or ("join" if self.kind == MM_IMDB else "first")

    @property
    def mapping_sha256(self) -> str:
        """Hex SHA-256 of what is read from where, except for the place.

        Sizes and times of files do not show that another column is read: the cached ones hold only
        for the same mapping.
        """
        values: dict[str, Any] = asdict(self)
        for name in ("path", "labels", "split", "splits", "follow_links", "clean_text"):
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def parse_collection(source: str, table: Mapping[str, Any], folder: Path) -> CollectionConfig:
    """Reads the table ``[collection]`` of a TOML file.

    Args:
        source: the file's name, for messages.
        table: the table.
        folder: the folder that a path in it is relative to.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type or choice.
    """
    known = {field.name: field for field in fields(CollectionConfig)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(
            f"{source}: [collection] sets {', '.join(unknown)}, which is not known.\n"
            f"Known: {', '.join(known)}."
        )
    lacking = [name for name in ("kind", "path") if name not in table]
    if lacking:
        raise ConfigError(f"{source}: [collection] lacks {' and '.join(lacking)}.")
    values = dict(table)
    for name, value in table.items():
        listed = name in ("text", "splits")
        if listed and isinstance(value, str):
            values[name] = (value,)
        elif listed and isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[name] = tuple(value)
        elif type(value) is not (bool if name in ("recursive", "follow_links") else str):
            raise ConfigError(f"{source}: [collection] {name} has the wrong type: {value!r}.")
    if not (values["kind"] == "huggingface" and not (folder / values["path"]).exists()):
        values["path"] = str(folder / values["path"])
    return CollectionConfig(**values)


def given_collection(
    *,
    data_dir: Path | str | None = None,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
) -> CollectionConfig | None:
    """The collection that one of three arguments names; None if none of them is given.

    Args:
        data_dir: a folder of MM-IMDb's posters and synopses.
        data: the path of a collection, whose kind is recognized.
        collection: the description of a collection.
        follow_links: whether to use symbolic links that lead out of a folder.

    Raises:
        ConfigError: more than one is given, or ``follow_links`` alone.
        InputError: there is nothing at ``data``, nothing of a known kind, or it may be of two.
    """
    require_one(data_dir=data_dir, data=data, collection=collection)
    if data_dir is not None:
        return CollectionConfig.mm_imdb(data_dir, follow_links=follow_links)
    if data is not None:
        from producers.sources.recognize import recognize  # which needs Pillow

        return recognize(data, follow_links=follow_links)
    if collection is not None:
        return replace(collection, follow_links=collection.follow_links or follow_links)
    if follow_links:
        raise ConfigError(f"--follow-links applies to inputs: {_NAME_THEM}")
    return None


def require_one(*, is_needed: bool = False, **given: object) -> None:
    """Refuses several inputs, and none if they are needed.

    Args:
        is_needed: whether one must be given.
        given: the arguments ``data_dir``, ``data`` and ``collection``.

    Raises:
        ConfigError: several are given, or none.
    """
    names = [_OPTIONS[name] for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} both name the inputs: give one of them.")
    if is_needed and not names:
        raise ConfigError(f"The inputs are missing: {_NAME_THEM}")
