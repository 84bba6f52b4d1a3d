"""Which columns of a table hold ids, images, texts, labels and splits, and their types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import ConfigError
from producers.sources.collection import CollectionConfig

if TYPE_CHECKING:
    import pyarrow as pa

# The names that are recognized where ``[collection]`` names no column.
TEXTS, LABELS, SPLITS = ("text", "caption"), ("label", "labels"), ("split",)

_EXPECTED = {
    "id": "strings or integers",
    "image": "paths (strings), bytes, or structs of bytes and path",
    "text": "strings or lists of strings",
    "labels": "strings, numbers, or lists of strings or integers",
    "split": "strings",
}


@dataclass(frozen=True, slots=True)
class Known:
    """Names of columns that are recognized in tables of one kind.

    Attributes:
        ids: of a column of ids.
        images: of a column of images.
        always_image: whether an image is taken also if ``[collection]`` names only texts.
    """

    ids: tuple[str, ...] = ("id", "key")
    images: tuple[str, ...] = ("image",)
    always_image: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns to read; None for what a table does not have."""

    id: str | None = None
    image: str | None = None
    texts: tuple[str, ...] = ()
    labels: str | None = None
    split: str | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """(name in the cached form, name in the table) of every column to read."""
        texts = ((f"text{number}", name) for number, name in enumerate(self.texts))
        single = (("id", self.id), ("image", self.image))
        more = (("labels", self.labels), ("split", self.split))
        return [(k, v) for k, v in (*single, *texts, *more) if v is not None]


def choose_columns(
    collection: CollectionConfig,
    names: Sequence[str],
    table: str,
    known: Known,
) -> Columns:
    """Chooses the columns of a table: those that ``[collection]`` names, else by their names.

    If ``[collection]`` names a column of images or of texts, no other inputs are taken.

    Args:
        collection: the collection.
        names: all columns of the table.
        table: the table's name, for messages.
        known: names of columns that are recognized.

    Raises:
        ConfigError: a named column is missing or exists twice; two columns are recognized for one
            purpose; or there is neither an image nor a text.
    """
    by_name = not (collection.image or collection.text)

    def chosen(purpose: str, named: str | None, allowed: Sequence[str]) -> str | None:
        found = [name for name in allowed if name in names]
        if named is None and len(found) > 1:
            raise ConfigError(
                f"{table} has the columns {' and '.join(found)}: name the one of the {purpose} in "
                f"[collection].\n{_to_paste(collection)}"
            )
        return named if named is not None else found[0] if found else None

    images = known.images if by_name or known.always_image else ()
    text = chosen("text", None, TEXTS if by_name else ())
    columns = Columns(
        id=chosen("id", collection.id, known.ids),
        image=chosen("image", collection.image, images),
        texts=collection.text or ((text,) if text else ()),
        labels=chosen("labels", collection.labels, LABELS),
        split=chosen("split", collection.split, SPLITS),
    )
    for _, name in columns.pairs():
        if names.count(name) != 1:
            problem = "has no column" if name not in names else "has more than one column"
            raise ConfigError(f"{table} {problem} {name!r}; its columns: {', '.join(names)}.")
    if columns.image is None and (known.always_image or not columns.texts):
        wanted = known.images if known.always_image else (*known.images, *TEXTS)
        raise ConfigError(
            f"{table} has no column named {' or '.join(wanted)}; its columns: "
            f"{', '.join(names)}.\n{_to_paste(collection)}"
        )
    return columns


def _to_paste(collection: CollectionConfig) -> str:
    """A table ``[collection]`` whose columns are to be named: a guess would be pasted as it is."""
    return "\n".join(
        (
            "Put this into manyviews.toml, with names of columns; give it with --config:",
            "[collection]",
            f"kind = {_quoted(collection.kind)}",
            f"path = {_quoted(collection.path)}",
            'image = "COLUMN"  # of paths or bytes',
            'text = "COLUMN"  # also id, labels, split; leave out what there is not',
        )
    )


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def require_types(schema: pa.Schema, columns: Columns, table: str) -> None:
    """Checks the types of the columns.

    Args:
        schema: the table's schema.
        columns: the columns.
        table: the table's name, for messages.

    Raises:
        ConfigError: a column has a type that its purpose does not allow.
    """
    for key, name in columns.pairs():
        purpose = "text" if key.startswith("text") else key
        type_ = schema.field(name).type
        if not _fits(purpose, type_):
            raise ConfigError(
                f"The column {name!r} of {table} has the type {type_}.\n"
                f"Expected {_EXPECTED[purpose]} for {purpose}."
            )


def _fits(purpose: str, type_: Any) -> bool:
    import pyarrow.types as t

    plain = type_.value_type if t.is_dictionary(type_) else type_
    if t.is_null(plain) or (t.is_string(plain) or t.is_large_string(plain)):
        return True
    if purpose == "image":
        if t.is_struct(plain):
            return bool({field.name for field in plain} & {"bytes", "path"}) and all(
                _fits("image", field.type) and not t.is_struct(field.type)
                for field in plain
                if field.name in ("bytes", "path")
            )
        return bool(t.is_binary(plain) or t.is_large_binary(plain))
    listed = is_list(plain)
    if purpose == "text":
        return listed and _fits("split", plain.value_type)
    if purpose == "labels":
        if listed:
            return bool(t.is_integer(plain.value_type)) or _fits("split", plain.value_type)
        return bool(t.is_integer(plain) or t.is_floating(plain) or t.is_boolean(plain))
    return purpose == "id" and bool(t.is_integer(plain))


def is_list(type_: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    import pyarrow.types as t

    return bool(t.is_list(type_) or t.is_large_list(type_) or t.is_fixed_size_list(type_))
