"""The bad inputs of a store, with pictures of their placeholders or images."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from featurestore.errors import BadSampleError, InputError
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from manyviews.operations.replay.recorded import sample_now, stored_scan
from manyviews.operations.words import words_of
from producers import decode
from producers.sources.collection import CollectionConfig
from producers.sources.scan import Inputs

LISTED = 500
PICTURED = 100
_SIDE = 96


@dataclass(frozen=True, slots=True)
class BadRow:
    """One bad input.

    Attributes:
        stem: the sample's stem.
        bad: the bad input as recorded in the store.
        picture: the ``data:`` address of a JPEG, or ``""``.
        note: the content of the picture, or the reason why there is none.
    """

    stem: str
    bad: BadInput
    picture: str
    note: str


def bad_rows(store: FeatureStore, collection: CollectionConfig | None) -> list[BadRow]:
    """The first ``LISTED`` bad inputs; with the inputs, the first ``PICTURED`` have pictures."""
    if not store.bad_inputs:
        return []
    pictures = None if collection is None else _Pictures(store, collection)
    rows = []
    for at, bad in enumerate(store.bad_inputs[:LISTED]):
        picture, note = "", ""
        if pictures is not None and at < PICTURED:
            picture, note = pictures.of(bad)
        rows.append(BadRow(store.samples[bad.index].stem, bad, picture, note))
    return rows


class _Pictures:
    """The pictures of bad inputs, of the collection that a store was built from."""

    def __init__(self, store: FeatureStore, collection: CollectionConfig) -> None:
        self._store = store
        self._found = stored_scan(collection, store)
        self._inputs = Inputs(self._found)
        self._noun = words_of(collection).image

    def of(self, bad: BadInput) -> tuple[str, str]:
        """The picture and its note: the placeholder of a bad image, or the image of a bad text."""
        if bad.modality == "image":
            return _data(Image.new("RGB", (_SIDE * 2 // 3, _SIDE))), "black placeholder"
        chunk, position = divmod(bad.index, self._store.spec.chunk)
        recorded = self._store.ledger[chunk].samples[position].image_sha256
        noun = self._noun
        try:
            sample = sample_now(self._found, self._store.samples[bad.index])
            data = self._inputs.image(sample)
            if data is None and not recorded:
                return "", f"no {noun}"
            if data is None or hashlib.sha256(data).hexdigest() != recorded:
                return "", f"the {noun} has changed since the build"
            picture = decode.image(data)
        except BadSampleError as error:
            return "", f"{noun} {error.reason}"
        except InputError as error:
            return "", str(error).partition("\n")[0]
        picture.thumbnail((_SIDE, _SIDE))
        return _data(picture), noun


def _data(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
