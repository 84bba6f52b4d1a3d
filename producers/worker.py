"""A producer process: reads samples by number from one pipe, fills slots, reports on another.

The process starts with the script ``parent`` and inherited descriptors, so that it imports neither
the caller's ``__main__`` nor any state of the parent; the script imports this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.errors import BadSampleError
from featurestore.records import Sample
from producers import decode
from producers.kernels.implementations import implementation
from producers.recipes import image_views, text_views
from producers.recipes.image_views import ImageSpec
from producers.recipes.tokens import TextSpec, TokenEncoder
from producers.serving import Handler, out_of_memory, serve
from producers.slots import Ring, SlotArrays, SlotLayout
from producers.sources.readers import open_reader

STAGES = ("", "image", "text")
_DETAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Job:
    """The work of every producer of a build.

    Attributes:
        source: plain values that describe the reader of the inputs, see ``open_reader``.
        views: V, the number of views including the clean view.
        seed: base seed of both recipes.
        images: the distinct image specifications.
        texts: the text specifications.
        slots: number of slots.
        compiled: whether to use the C kernels; their results equal those of the libraries.
        first_view: index of the first view to compute, at most V-1.
    """

    source: Mapping[str, Any]
    views: int
    seed: int
    images: tuple[ImageSpec, ...]
    texts: tuple[TextSpec, ...]
    slots: int
    compiled: bool = True
    first_view: int = 0

    @property
    def layout(self) -> SlotLayout:
        """The layout of the job's slots."""
        lengths = tuple(t.max_length for t in self.texts)
        return SlotLayout(self.views, self.images, lengths, self.first_view)

    def to_json(self) -> bytes:
        """The job as JSON."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """Reads a job that :meth:`to_json` wrote."""
        values = json.loads(data)
        values["images"] = tuple(ImageSpec(**v) for v in values["images"])
        values["texts"] = tuple(TextSpec(**v) for v in values["texts"])
        return cls(**values)


class Producer:
    """Computes the views of samples, one sample at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader = open_reader(job.source)
        self._kernels = implementation(compiled_code=job.compiled) if job.images else None
        self._encoders = [TokenEncoder(spec) for spec in job.texts]
        self._bad: dict[str, tuple[str, str]] = {}

    def produce(
        self, sample: Sample, arrays: SlotArrays, skip: dict[str, str], where: Any = None
    ) -> dict[str, Any]:
        """Fills ``arrays`` with the sample's views; the arrays of an absent input are not filled.

        Args:
            sample: the sample.
            arrays: the arrays of the slot.
            skip: reason for each modality that must not be tried again.
            where: the sample's locator, for the reader.

        Returns:
            The report: digests, number of words, bad inputs, truncated texts.
        """
        self._bad = {}
        report: dict[str, Any] = {"image_sha256": "", "text_sha256": "", "words": 0, "cut": []}
        if self._job.images:
            arrays.stage[0] = STAGES.index("image")
            self._image(sample, where, arrays, skip.get("image"), report)
        arrays.stage[0] = STAGES.index("text")
        self._text(sample, where, arrays, skip.get("text"), report)
        arrays.stage[0] = 0
        report["bad"] = [[modality, *why] for modality, why in self._bad.items()]
        return report

    def _image(
        self,
        sample: Sample,
        where: Any,
        arrays: SlotArrays,
        skip: str | None,
        report: dict[str, Any],
    ) -> None:
        try:
            _refuse(skip)
            data = self._reader.image(sample, where)
            if data is None:
                report["image_sha256"] = None
                return
            report["image_sha256"] = hashlib.sha256(data).hexdigest()
            self._image_views(decode.image(data), sample.index, arrays)
        except (BadSampleError, MemoryError) as e:
            self._record("image", *_why(e))
            # The views of a black poster: every transform of the recipe leaves black pixels black.
            for views in (*arrays.augmented.values(), *arrays.clean.values()):
                views.fill(0)

    def _image_views(self, poster: Any, index: int, arrays: SlotArrays) -> None:
        assert self._kernels is not None
        prepared = self._kernels.prepare(np.asarray(poster))
        for spec in self._job.images:
            # Checked even if view 0 is not computed: a poster without view 0 has no other views.
            image_views.check_clean(poster, spec)
        for spec, clean in arrays.clean.items():
            clean[...] = image_views.clean_view(poster, spec, self._kernels, prepared)
        for size, augmented in arrays.augmented.items():
            image_views.augmented_views(
                poster,
                size=size,
                base_seed=self._job.seed,
                index=index,
                views=self._job.views,
                first_view=self._job.first_view,
                out=augmented,
                kernels=self._kernels,
                prepared=prepared,
            )

    def _text(
        self,
        sample: Sample,
        where: Any,
        arrays: SlotArrays,
        skip: str | None,
        report: dict[str, Any],
    ) -> None:
        text = ""
        try:
            _refuse(skip)
            texts = self._reader.texts(sample, where)
            if texts is None:
                report["text_sha256"], report["cut"] = None, [0] * len(self._encoders)
                return
            report["text_sha256"] = texts.sha256
            decoded = texts.decoded()
            text = decoded.text
            if decoded.reason is not None:
                self._record("text", decoded.reason, decoded.detail)
        except (BadSampleError, MemoryError) as e:
            self._record("text", *_why(e))
        try:
            self._text_views(text, sample.index, arrays, report)
        except MemoryError as e:
            self._record("text", *_why(e))
            self._text_views("", sample.index, arrays, report)

    def _text_views(
        self, text: str, index: int, arrays: SlotArrays, report: dict[str, Any]
    ) -> None:
        report["words"], report["cut"] = len(text.split()), []
        if self._encoders:
            job = self._job
            views = text_views.draw(text, job.seed, index, job.views, job.first_view)
            for encoder, ids, lengths in zip(
                self._encoders, arrays.ids, arrays.lengths, strict=True
            ):
                report["cut"].append(encoder.encode_views(views, ids, lengths))

    def _record(self, modality: str, reason: str, detail: str) -> None:
        """Records the last problem of an input, which decides its views; the detail names both."""
        before = self._bad.get(modality)
        if before is not None:
            detail = f"{detail}; before that {': '.join(before)}"
        self._bad[modality] = (reason, detail[:_DETAIL_CHARS])


def _refuse(reason: str | None) -> None:
    if reason is not None:
        word, _, detail = reason.partition(": ")
        raise BadSampleError(word, detail)


def _why(error: BadSampleError | MemoryError) -> tuple[str, str]:
    """Reason and detail of an input that cannot be used."""
    if isinstance(error, BadSampleError):
        return error.reason, error.detail
    return out_of_memory()


def main(arguments: Sequence[str]) -> None:
    """Serves tasks until the parent closes the pipe."""
    serve(arguments, _prepare)


def _prepare(data: bytes, fds: Sequence[int]) -> Handler:
    """Creates the function that handles each task of a build.

    Args:
        data: the ``Job`` as JSON.
        fds: one descriptor: the shared memory with the slots that views are written to.
    """
    job = Job.from_json(data)
    ring = Ring(job.layout, job.slots, fds[0])
    producer = Producer(job)
    if job.images:
        image_views.warm_up()

    def produce(task: dict[str, Any]) -> dict[str, Any]:
        sample = Sample(*task["sample"])
        report = producer.produce(sample, ring.slot(task["slot"]), task["skip"], task["where"])
        return {"index": sample.index, **report}

    return produce
