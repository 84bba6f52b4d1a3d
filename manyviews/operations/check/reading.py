"""Read inputs as a build would, in separate processes, and describe each of them.

The decoders read untrusted files: a file that crashes or blocks a process must not crash or block
the check. Each file gets the same limits of time and memory as in a producer; a file that ends two
processes is reported as bad.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import IO, Any

from featurestore.errors import BadSampleError
from featurestore.imdb.genres import CLASS_NAMES, genres_vector
from featurestore.records import Sample
from producers import decode
from producers.crew import KILLS_PER_INPUT, POLL_S, Crew
from producers.decode import ImageFacts
from producers.process import Child, temporary_file
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.serving import Handler, out_of_memory, serve
from producers.sources.readers import (
    Reader,
    Synopsis,
    TextList,
    Texts,
    nowhere,
    open_reader,
    usable,
)

# Characters of a text that are shown.
_PREVIEW = 60
# The reason and detail of a bad input.
_Bad = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Look:
    """The properties of one sample's inputs.

    Attributes:
        index: the sample's index.
        image: the poster's properties, or None if it is unusable or was not read.
        image_bad: (reason, detail) if a placeholder would replace the poster, or None.
        text_bad: (reason, detail) if the synopsis is bad; a part of it may still be used.
        texts: number of texts; 0 if the sample has none.
        preview: the start of the text that is used.
        words: number of white-space separated words in the text that is used.
        tokens: number of ids per text specification, including special ones, before truncation.
        genres: the known genres.
        unknown_genres: the unknown genres, printable.
    """

    index: int
    image: ImageFacts | None = None
    image_bad: _Bad | None = None
    text_bad: _Bad | None = None
    texts: int = 0
    preview: str = ""
    words: int = 0
    tokens: tuple[int, ...] = ()
    genres: tuple[str, ...] = ()
    unknown_genres: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """The job of the reading processes.

    Attributes:
        source: plain values that describe the reader of the inputs, see ``open_reader``.
        images: whether posters are read.
        texts: the text specifications whose tokens are counted.
        every_text: whether views are made of all texts of a sample, not of the clean one alone.
    """

    source: Mapping[str, Any]
    images: bool = True
    texts: tuple[TextSpec, ...] = ()
    every_text: bool = False

    def to_json(self) -> bytes:
        """Serializes the job."""
        texts = [asdict(text) for text in self.texts]
        return json.dumps([self.source, self.images, texts, self.every_text]).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Reading:
        """Restores the job from the result of :meth:`to_json`."""
        source, images, texts, every_text = json.loads(data)
        return cls(source, images, tuple(TextSpec(**text) for text in texts), every_text)


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` samples, evenly spaced; the same ones on every call."""
    chosen = min(count, len(samples))
    return [samples[i * len(samples) // chosen] for i in range(chosen)]


def read(
    reading: Reading,
    samples: Sequence[Sample],
    workers: int,
    timeout_s: float,
    where: Callable[[Sample], Any] = nowhere,
) -> list[Look]:
    """Reads the samples' inputs in at most ``workers`` processes; returns them in their order.

    Args:
        reading: the job.
        samples: the samples to read.
        workers: number of processes.
        timeout_s: maximum number of seconds per file.
        where: function that returns a sample's locator.

    Raises:
        ProducerError: processes cannot be started or ended, or repeatedly end.
    """
    kinds = ("image", "text") if reading.images else ("text",)
    files = [_File(sample, kind, where(sample)) for sample in samples for kind in kinds]
    if not files:
        return []
    with (
        temporary_file(reading.to_json()) as job,
        _Readers(job, files, min(workers, len(files)), timeout_s) as readers,
    ):
        looks = readers.run()
    return [_joined(*(looks[sample.index, kind] for kind in kinds)) for sample in samples]


def look_at(
    reading: Reading, encoders: Sequence[TokenEncoder], sample: Sample, where: Any = None
) -> Look:
    """Reads one sample's inputs in this process."""
    reader = open_reader(reading.source)
    text = _text(reading, reader, encoders, sample, where, None)
    return _joined(_image(reader, sample, where, None), text) if reading.images else _joined(text)


def _joined(*parts: dict[str, Any]) -> Look:
    """Joins the plain values that describe each of a sample's files."""
    values = {name: value for part in parts for name, value in part.items()}
    image = values.pop("image", None)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Look(**values | lists, image=None if image is None else ImageFacts(*image))


# In the parent process --------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    """One file to read.

    Attributes:
        sample: the file's sample.
        kind: ``image`` or ``text``.
        where: the sample's locator.
        kills: number of processes that it ended.
        skip: reason and detail if it must not be opened again, or None.
    """

    sample: Sample
    kind: str
    where: Any = None
    kills: int = 0
    skip: _Bad | None = None

    @property
    def stem(self) -> str:
        return self.sample.stem

    def message(self) -> bytes:
        message = {
            "sample": self.sample.values(),
            "kind": self.kind,
            "where": self.where,
            "skip": self.skip,
        }
        return json.dumps(message).encode("ascii")


class _Readers(Crew[_File]):
    """Processes that read the files to check, and the results that they return."""

    def __init__(
        self, job: IO[bytes], files: Sequence[_File], workers: int, timeout_s: float
    ) -> None:
        self._todo: Iterator[_File] = iter(files)
        self._files = len(files)
        self._looks: dict[tuple[int, str], dict[str, Any]] = {}
        super().__init__(lambda: Child(__name__, job), workers, timeout_s)

    def run(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Reads all files; returns plain values that describe each, by sample index and kind."""
        while len(self._looks) < self._files:
            self.dispatch()
            self.wait(POLL_S)
        return self._looks

    def _next(self) -> _File | None:
        return next(self._todo, None)

    def _finish(self, task: _File, report: dict[str, Any]) -> None:
        self._looks[task.sample.index, task.kind] = report

    def _blame(self, task: _File, why: str) -> None:
        task.kills += 1
        if task.kills >= KILLS_PER_INPUT:
            reason, _, detail = why.partition(": ")
            task.skip = reason, f"{detail}, {KILLS_PER_INPUT} times"


# In each child process ---------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Reads files until the parent closes the pipe."""
    serve(arguments, _prepare)


def _prepare(data: bytes, _fds: Sequence[int]) -> Handler:
    reading = Reading.from_json(data)
    encoders = [TokenEncoder(spec) for spec in reading.texts]
    reader = open_reader(reading.source)

    def look(task: dict[str, Any]) -> dict[str, Any]:
        sample = Sample(*task["sample"])
        if task["kind"] == "image":
            return _image(reader, sample, task["where"], task["skip"])
        return _text(reading, reader, encoders, sample, task["where"], task["skip"])

    return look


def _image(
    reader: Reader, sample: Sample, where: Any, skip: Sequence[str] | None
) -> dict[str, Any]:
    """Describes an image; ``skip`` is the reason and detail if it must not be opened."""
    facts, bad = None, skip
    if bad is None:
        try:
            data = reader.image(sample, where)
            facts = None if data is None else decode.describe(data)
        except (BadSampleError, MemoryError) as error:
            bad = _why(error)
    image = None if facts is None else list(astuple(facts))
    return {"index": sample.index, "image": image, "image_bad": None if bad is None else list(bad)}


def _text(
    reading: Reading,
    reader: Reader,
    encoders: Sequence[TokenEncoder],
    sample: Sample,
    where: Any,
    skip: Sequence[str] | None,
) -> dict[str, Any]:
    """Describes texts; ``skip`` is the reason and detail if they must not be opened."""
    if skip is None:
        try:
            texts = reader.texts(sample, where)
            return _text_of(texts, encoders, sample, None, every=reading.every_text)
        except (BadSampleError, MemoryError) as error:
            skip = _why(error)
    return _text_of(None, encoders, sample, skip)


def _text_of(
    texts: Texts | None,
    encoders: Sequence[TokenEncoder],
    sample: Sample,
    bad: Sequence[str] | None,
    *,
    every: bool = False,
) -> dict[str, Any]:
    decoded = decode.DecodedText("") if texts is None else usable(texts, every=every)[0]
    if decoded.reason is not None:
        bad = (decoded.reason, decoded.detail)
    row, unknown = genres_vector(texts.document() if isinstance(texts, Synopsis) else None)
    return {
        "index": sample.index,
        "text_bad": None if bad is None else list(bad),
        "texts": len(texts.texts) if isinstance(texts, TextList) else int(texts is not None),
        "preview": decoded.text[:_PREVIEW],
        "words": len(decoded.text.split()),
        "tokens": [encoder.count(decoded.text) for encoder in encoders],
        "genres": [name for name, has in zip(CLASS_NAMES, row, strict=True) if has],
        "unknown_genres": list(unknown),
    }


def _why(error: BadSampleError | MemoryError) -> _Bad:
    if isinstance(error, BadSampleError):
        return error.reason, error.detail
    return out_of_memory()
