"""Read the inputs of one sample, wherever they are: the only module that opens inputs.

A reader is opened in every process that reads, from plain values (``Scan.source``), and finds a
sample's inputs by a locator (``Scan.where``), so that no process needs the whole collection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from featurestore.errors import BadSampleError
from featurestore.records import Sample
from producers import decode
from producers.decode import DecodedText
from producers.sources import files


class Texts(Protocol):
    """The texts of one sample, read but not decoded yet."""

    @property
    def sha256(self) -> str:
        """Hex digest of the texts."""

    def decoded(self) -> DecodedText:
        """The clean text, and its problem if it has one; never raises BadSampleError."""

    def each(self) -> list[DecodedText]:
        """Each text, and its problem if it has one; never raises BadSampleError."""


class Reader(Protocol):
    """Reads inputs; several threads may read at the same time."""

    def image(self, sample: Sample, where: Any) -> bytes | None:
        """The encoded bytes of the sample's image, or None if it has none.

        Raises:
            BadSampleError: the image cannot be read.
            StorageError: the machine or the file system refuses.
        """

    def texts(self, sample: Sample, where: Any) -> Texts | None:
        """The sample's texts, or None if it has none.

        Raises:
            BadSampleError: the texts cannot be read.
            StorageError: the machine or the file system refuses.
        """


@dataclass(frozen=True, slots=True)
class Synopsis:
    """The file of an MM-IMDb synopsis.

    Attributes:
        data: the file's bytes.
    """

    data: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def decoded(self) -> DecodedText:
        """The plot, and its problem if it has one."""
        return decode.text(self.data)

    def each(self) -> list[DecodedText]:
        """The plot alone: its summaries are one text."""
        return [self.decoded()]

    def document(self) -> object:
        """The parsed JSON document, with the genres; None if it cannot be parsed."""
        try:
            return decode.document(self.data)
        except BadSampleError:
            return None


@dataclass(frozen=True, slots=True)
class TextList:
    """The texts of a sample of any other collection.

    Attributes:
        texts: at least one text.
        rule: which of them is the clean one, see ``CollectionConfig.clean_text``.
        problem: (reason, detail) of a part that was dropped, or None.
    """

    texts: Sequence[str]
    rule: str
    problem: tuple[str, str] | None = None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the texts, each preceded by its number of bytes (8 bytes, big-endian)."""
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    def decoded(self) -> DecodedText:
        """The clean text; lone surrogates, which no tokenizer accepts, become U+FFFD."""
        clean = decode.encodable(_clean(self.texts, self.rule))
        if clean.reason is None and self.problem is not None:
            return DecodedText(clean.text, *self.problem)
        return clean

    def each(self) -> list[DecodedText]:
        """Each text, without lone surrogates."""
        return [decode.encodable(text) for text in self.texts]


def _clean(texts: Sequence[str], rule: str) -> str:
    if rule == "join":
        return " ".join(texts)
    return max(texts, key=len) if rule == "longest" else texts[0]


class PairReader:
    """Reads the folder of posters and synopses of MM-IMDb.

    Args:
        data_dir: path of the folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def image(self, sample: Sample, where: Any) -> bytes:  # noqa: ARG002  found by the names
        """The bytes of the poster; see :class:`Reader`."""
        path = files.image_path(self._data_dir, sample)
        return files.read_capped(path, files.MAX_IMAGE_BYTES)

    def texts(self, sample: Sample, where: Any) -> Synopsis:  # noqa: ARG002
        """The synopsis; see :class:`Reader`."""
        path = files.text_path(self._data_dir, sample)
        return Synopsis(files.read_capped(path, files.MAX_TEXT_BYTES))


def usable(texts: Texts, *, every: bool) -> tuple[DecodedText, list[str]]:
    """The texts that a recipe makes views of.

    Args:
        texts: the texts of a sample.
        every: whether it needs each of them, not the clean text alone.

    Returns:
        The clean text with the first problem of the texts that are needed; and each text, or none
        if only the clean text is needed.
    """
    clean = texts.decoded()
    if not every:
        return clean, []
    each = texts.each()
    problem = next((one for one in (clean, *each) if one.reason is not None), clean)
    return DecodedText(clean.text, problem.reason, problem.detail), [one.text for one in each]


def nowhere(_sample: Sample) -> None:
    """The locator for :class:`PairReader`: the sample has the names of its files itself."""


def pair_source(data_dir: Path) -> dict[str, Any]:
    """The description of :class:`PairReader` for :func:`open_reader`."""
    return {"kind": "pairs", "root": str(data_dir.resolve())}


def open_reader(values: Mapping[str, Any]) -> Reader:
    """Opens the reader that ``values``, a ``Scan.source``, describe."""
    kind = values["kind"]
    if kind == "pairs":
        return PairReader(Path(values["root"]))
    if kind == "files":
        from producers.sources.folder import FileReader

        return FileReader(values)
    if kind == "arrow":
        from producers.sources.tables.arrow import ArrowReader

        return ArrowReader(values)
    if kind == "tar":
        from producers.sources.tars.reading import TarReader

        return TarReader(values)
    raise ValueError(f"no reader of kind {kind!r}")
