"""Samples that are rows of memory-mapped Arrow files: where they are, and how one is read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BadSampleError
from featurestore.records import Modality, Sample
from producers.sources import files
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container, Integers, states
from producers.sources.files import name_bytes, native, stat_file
from producers.sources.folder import text_list
from producers.sources.readers import TextList
from producers.sources.scan import InputStats
from producers.sources.tables.converting import read_file
from producers.sources.tables.rows import Rows, image_parts

# The key of the paths of images that have bytes in a column of their own; no column has this name.
_PATH = "\0path"
# Images that are looked for to find out whether all are gone.
LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class ArrowPlaces:
    """Rows of Arrow files.

    Attributes:
        collection: the collection.
        files: the Arrow files.
        rows: their tables and columns.
        order: the number of each sample's row: int64 ``[N]``.
        sources: the files that the rows come from: the Arrow files, or the tables that were turned
            into one.
        source_of: the number of each row's source, by row.
        row_in_source: the number of each row within its source, by row.
        cache: path of the Arrow file if it is only the cached form of the sources, else None.
    """

    collection: CollectionConfig
    files: Sequence[Container]
    rows: Rows
    order: Integers
    sources: Sequence[Container]
    source_of: Integers
    row_in_source: Integers
    cache: Path | None = None

    @property
    def source(self) -> Mapping[str, Any]:
        """See :class:`producers.sources.scan.Places`."""
        return {
            "kind": "arrow",
            "files": [file.values() for file in self.files],
            "image": self.rows.image,
            "texts": list(self.rows.texts),
            "folders": [str(Path(source.path).parent) for source in self.sources],
            "rule": self.collection.clean_rule,
            # A cached form is only ever replaced as a whole: its mapping stays valid.
            "stays": self.cache is not None,
        }

    def where(self, sample: Sample) -> list[int]:
        """The Arrow file, the row in it, and the source, whose folder paths are relative to."""
        row = int(self.order[sample.index])
        file = bisect_right(self.rows.starts, row) - 1
        return [file, row - int(self.rows.starts[file]), int(self.source_of[row])]

    def names(self, sample: Sample) -> tuple[str, str]:
        """The name of the sample's row, twice."""
        name = self.row_name(int(self.order[sample.index]))
        return name, name

    def row_name(self, row: int) -> str:
        """What messages call a row of the tables; rows count from 0."""
        number = f"row {self.row_in_source[row]}"
        if len(self.sources) == 1:
            return number
        return f"{number} of {Path(self.sources[self.source_of[row]].path).name}"

    def sizes(self, modality: Modality) -> list[int]:
        """The numbers of bytes; -1 for a missing file."""
        if modality == "text":
            sizes = self.rows.text_bytes()
        else:
            sizes = self.rows.image_bytes()
            paths = self.rows.paths() or ()
            for row, path in enumerate(paths):
                if path is not None:
                    sizes[row] = stat_file(self._path(row, path))[0]
        found: list[int] = sizes[self.order].tolist()
        return found

    def gone(self) -> bool:
        """Whether an Arrow file is gone or has changed, or none of the images is there any more."""
        return not all(file.unchanged for file in self.files) or self.no_image_found()

    def no_image_found(self) -> bool:
        """Whether there are paths of images, and none of the first thousand leads to a file."""
        paths = [(row, path) for row, path in enumerate(self.rows.paths() or ()) if path]
        found = (stat_file(self._path(row, path))[0] >= 0 for row, path in paths[:LOOKED_AT])
        return bool(paths) and not any(found)

    def stats(self) -> InputStats:
        """The state of each sample's source, with its row, or with its image's size and time."""
        stats = np.empty((len(self.rows), 4), np.int64)
        stats[:, 0] = stats[:, 2] = self.row_in_source
        stats[:, 1] = stats[:, 3] = states(self.sources, self.source_of)
        for row, path in enumerate(self.rows.paths() or ()):
            if path is not None:
                size, time = stat_file(self._path(row, path))
                stats[row, 0] = size
                stats[row, 1] ^= time
        return stats[self.order]

    def _path(self, row: int, path: str) -> bytes:
        folder = Path(self.sources[self.source_of[row]].path).parent
        return bytes(folder) + b"/" + name_bytes(path) if path[0] != "/" else name_bytes(path)


class ArrowReader:
    """Reads rows of memory-mapped Arrow files.

    All files are mapped at once: a producer limits its address space afterwards.

    Args:
        values: ``ArrowPlaces.source``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._files = [Container(*file) for file in values["files"]]
        self._image: str | None = values["image"]
        self._texts: list[str] = values["texts"]
        self._columns = [self._mapped(file) for file in self._files]
        self._folders = [Path(folder) for folder in values["folders"]]
        self._rule: str = values["rule"]
        self._stays: bool = values["stays"]

    def image(self, sample: Sample, where: Any) -> bytes | None:  # noqa: ARG002
        """The bytes in the row, or of the file that it names; see :class:`Reader`."""
        if self._image is None:
            return None
        value = self._value(where, self._image) or self._value(where, _PATH)
        if not value:
            return None
        if isinstance(value, str):
            path = self._folders[where[2]] / native(value)
            return files.read_capped(path, files.MAX_IMAGE_BYTES)
        if len(value) > files.MAX_IMAGE_BYTES:
            raise _too_large(len(value), files.MAX_IMAGE_BYTES)
        return bytes(value)

    def texts(self, sample: Sample, where: Any) -> TextList | None:  # noqa: ARG002
        """The texts of the row's columns, in order; see :class:`Reader`."""
        found: list[str] = []
        for column in self._texts:
            value = self._value(where, column)
            found += value if isinstance(value, list) else [value]
        kept = [text for text in found if text]
        size = sum(map(len, kept))
        if size > files.MAX_TEXT_BYTES:
            raise _too_large(size, files.MAX_TEXT_BYTES)
        return text_list(kept, self._rule)

    def _mapped(self, file: Container) -> dict[str, Any]:
        """The columns of a file; none if it has changed since it was scanned."""
        if not file.unchanged:
            return {}
        table = read_file(Path(file.path))
        columns = {name: table.column(name) for name in self._texts}
        if self._image is not None:
            columns[self._image], columns[_PATH] = image_parts(table.column(self._image))
        return columns

    def _value(self, where: Any, column: str) -> Any:
        """One value; its Arrow file must not have been truncated, lest reading ends the process."""
        file, row, _ = where
        columns = self._columns[file]
        if not columns or not (self._stays or self._files[file].unchanged):
            raise self._files[file].changed()
        values = columns[column]
        try:
            return None if values is None else values[row].as_py()
        except UnicodeDecodeError as error:
            raise BadSampleError("not-utf8", str(error)[:200]) from None


def _too_large(size: int, most: int) -> BadSampleError:
    return BadSampleError("too-large", f"{size:,} bytes; at most {most:,}")
