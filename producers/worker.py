"""A producer process: reads samples by number from one pipe, fills slots, reports on another.

The process starts with the script ``parent`` and inherited descriptors, so that it imports neither
the caller's ``__main__`` nor any state of the parent; the script imports this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featurestore.errors import BadSampleError
from featurestore.records import Sample, view_seeds
from producers import decode
from producers.kernels.implementations import implementation
from producers.recipes.images.geometry import ImageSpec, Poster, check_clean, clean_view
from producers.recipes.images.presets import image_recipe
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
from producers.recipes.texts.presets import text_recipe
from producers.recipes.texts.tokens import TextSpec, TokenEncoder
from producers.serving import Handler, out_of_memory, serve
from producers.slots import Ring, SlotArrays, SlotLayout
from producers.sources.readers import open_reader, usable

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
        image_recipe: name and parameters of the recipe of images, see ``Recipe.values``.
        text_recipe: name and parameters of the recipe of texts.
    """

    source: Mapping[str, Any]
    views: int
    seed: int
    images: tuple[ImageSpec, ...]
    texts: tuple[TextSpec, ...]
    slots: int
    compiled: bool = True
    first_view: int = 0
    image_recipe: Mapping[str, Any] = field(default_factory=lambda: Simclr().values())
    text_recipe: Mapping[str, Any] = field(default_factory=lambda: Mask().values())

    @property
    def layout(self) -> SlotLayout:
        """The layout of the job's slots."""
        lengths = tuple(t.max_length for t in self.texts)
        is_shared = image_recipe(self.image_recipe).is_shared
        return SlotLayout(
            self.views, self.images, lengths, self.first_view, shares_pixels=is_shared
        )

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
        self._image_recipe = image_recipe(job.image_recipe)
        self._text_recipe = text_recipe(job.text_recipe)
        if job.images:
            self._image_recipe.prepare()
        if job.texts:
            self._text_recipe.prepare()
        self._others = range(max(job.first_view, 1), job.views)
        self._distinct = job.layout.distinct
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
            # A placeholder is black, in every view.
            for views in (*arrays.augmented.values(), *arrays.clean.values()):
                views.fill(0)

    def _image_views(self, image: Any, index: int, arrays: SlotArrays) -> None:
        poster = Poster(image, self._kernels)
        for spec in self._job.images:
            # Checked even if view 0 is not computed: a poster without view 0 has no other views.
            check_clean(image, spec)
        for spec, clean in arrays.clean.items():
            clean[...] = clean_view(poster, spec)
        seeds = view_seeds(self._job.seed, index, self._others, "image")
        for spec in self._distinct:
            out = arrays.augmented[spec]
            self._image_recipe.make(poster, spec, self._others, seeds, out)

    def _text(
        self,
        sample: Sample,
        where: Any,
        arrays: SlotArrays,
        skip: str | None,
        report: dict[str, Any],
    ) -> None:
        text, every = "", list[str]()
        try:
            _refuse(skip)
            texts = self._reader.texts(sample, where)
            if texts is None:
                report["text_sha256"], report["cut"] = None, [0] * len(self._encoders)
                return
            report["text_sha256"] = texts.sha256
            decoded, every = usable(texts, every=self._text_recipe.every_text)
            text = decoded.text
            if decoded.reason is not None:
                self._record("text", decoded.reason, decoded.detail)
        except (BadSampleError, MemoryError) as e:
            self._record("text", *_why(e))
        try:
            self._text_views(text, every, sample.index, arrays, report)
        except (BadSampleError, MemoryError) as e:
            self._record("text", *_why(e))
            self._text_views("", [], sample.index, arrays, report)

    def _text_views(
        self,
        text: str,
        every: Sequence[str],
        index: int,
        arrays: SlotArrays,
        report: dict[str, Any],
    ) -> None:
        report["words"], report["cut"] = len(text.split()), []
        if self._encoders:
            has_clean = self._job.first_view == 0
            seeds = view_seeds(self._job.seed, index, self._others, "text")
            views = self._text_recipe.draw(
                text, self._others, seeds, has_clean=has_clean, texts=every
            )
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

    def produce(task: dict[str, Any]) -> dict[str, Any]:
        sample = Sample(*task["sample"])
        report = producer.produce(sample, ring.slot(task["slot"]), task["skip"], task["where"])
        return {"index": sample.index, **report}

    return produce
