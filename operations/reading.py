"""Read inputs as a build would, in processes of their own, and say what each of them is.

The decoders of a build read what other people made: a file that ends a process must not end the
check. What was in work then is read again, one by one, and the culprit is named.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from featurestore.errors import BadSampleError, ProducerError
from featurestore.genres import CLASS_NAMES, genres_vector
from featurestore.records import Sample
from producers import decode, source
from producers.decode import ImageFacts
from producers.tokens import TextSpec, TokenEncoder

_BATCH = 16
_KILLERS = 8
_KILLED = ("killed", "reading it ended the process")


@dataclass(frozen=True, slots=True)
class Look:
    """What one sample's inputs are.

    Attributes:
        index: the sample's index.
        image: what the poster is, or None where it cannot be used.
        image_bad: (reason, detail) where a placeholder would stand in for the poster.
        text_bad: the same for the synopsis; a part of it may still be used.
        words: white-space words of the text that is used.
        tokens: ids per text specification, special ones included, before any cut.
        genres: the known genres.
        unknown_genres: the others, printable.
    """

    index: int
    image: ImageFacts | None = None
    image_bad: tuple[str, str] | None = None
    text_bad: tuple[str, str] | None = None
    words: int = 0
    tokens: tuple[int, ...] = ()
    genres: tuple[str, ...] = ()
    unknown_genres: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and how.

    Attributes:
        data_dir: the data folder.
        images: whether posters are looked at.
        texts: the tokenizers to count with.
    """

    data_dir: Path
    images: bool = True
    texts: tuple[TextSpec, ...] = ()


@dataclass(slots=True)
class _Process:
    """What one reading process keeps between batches."""

    reading: Reading | None = None
    encoders: list[TokenEncoder] = field(default_factory=list)


_process = _Process()


def evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` samples, evenly spread over all: the same ones every time."""
    chosen = min(count, len(samples))
    return [samples[i * len(samples) // chosen] for i in range(chosen)]


def read(reading: Reading, samples: Sequence[Sample], workers: int) -> list[Look]:
    """Reads the samples' inputs in ``workers`` processes; in the samples' order."""
    looks: dict[int, Look] = {}
    killers = 0
    left = list(samples)
    while left:
        looks |= _read_all(reading, left, _BATCH, workers)
        left = [s for s in left if s.index not in looks]
        # A process has died. One process reads in order: the first that does not come back did it.
        looks |= _read_all(reading, left, 1, 1)
        left = [s for s in left if s.index not in looks]
        if left:
            killers += 1
            if killers > _KILLERS:
                raise ProducerError(
                    f"Processes that read inputs ended {killers} times, the last at sample "
                    f"{left[0].stem!r}.\nLook for lack of memory, or read fewer samples at a time "
                    "with --workers 1."
                )
            looks[left[0].index] = Look(left[0].index, image_bad=_KILLED)
    return [looks[s.index] for s in samples]


def _read_all(
    reading: Reading, samples: Sequence[Sample], size: int, workers: int
) -> dict[int, Look]:
    """The looks that come back before a process dies, if one does."""
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    looks: dict[int, Look] = {}
    if not batches:
        return looks
    # Spawned, as a build's producers are: nothing of this process is copied into them.
    with ProcessPoolExecutor(
        min(workers, len(batches)), get_context("spawn"), _begin, (reading,)
    ) as pool:
        futures: list[Future[list[Look]]] = []
        with suppress(BrokenProcessPool):
            futures.extend(pool.submit(_read_batch, batch) for batch in batches)
        for future in as_completed(futures):
            with suppress(BrokenProcessPool):
                looks |= {look.index: look for look in future.result()}
    return looks


def _begin(reading: Reading) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process.reading = reading
    _process.encoders = [TokenEncoder(spec) for spec in reading.texts]


def _read_batch(samples: Sequence[Sample]) -> list[Look]:
    if _process.reading is None:
        raise RuntimeError("the process was not told what to read")
    return [look_at(_process.reading, _process.encoders, sample) for sample in samples]


def look_at(reading: Reading, encoders: Sequence[TokenEncoder], sample: Sample) -> Look:
    """Reads one sample's inputs in this process."""
    image, image_bad = _poster(reading, sample) if reading.images else (None, None)
    document, text_bad = _document(reading.data_dir, sample)
    decoded = decode.plot_text(document) if text_bad is None else decode.DecodedText("")
    if decoded.reason is not None:
        text_bad = (decoded.reason, decoded.detail)
    row, unknown = genres_vector(document)
    return Look(
        sample.index,
        image,
        image_bad,
        text_bad,
        words=len(decoded.text.split()),
        tokens=tuple(encoder.count(decoded.text) for encoder in encoders),
        genres=tuple(name for name, has in zip(CLASS_NAMES, row, strict=True) if has),
        unknown_genres=tuple(unknown),
    )


def _poster(reading: Reading, sample: Sample) -> tuple[ImageFacts | None, tuple[str, str] | None]:
    path = source.image_path(reading.data_dir, sample)
    try:
        return decode.describe(source.read_capped(path, source.MAX_IMAGE_BYTES)), None
    except BadSampleError as error:
        return None, (error.reason, error.detail)


def _document(data_dir: Path, sample: Sample) -> tuple[object, tuple[str, str] | None]:
    path = source.text_path(data_dir, sample)
    try:
        return decode.document(source.read_capped(path, source.MAX_TEXT_BYTES)), None
    except BadSampleError as error:
        return None, (error.reason, error.detail)
