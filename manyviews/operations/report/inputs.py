"""The bad inputs of a store, with pictures of their placeholders or posters."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from featurestore.errors import BadSampleError
from featurestore.records import BadInput, Sample
from featurestore.storage.store import FeatureStore
from featurestore.system.links import LEAVES, leads_outside
from producers import decode
from producers.sources import files
from producers.sources.scan import Inputs, Scan

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


def bad_rows(
    store: FeatureStore,
    data_dir: Path | None,
    *,
    follow_links: bool = False,
    scanned: Scan | None = None,
) -> list[BadRow]:
    """The first ``LISTED`` bad inputs; with inputs, the first ``PICTURED`` of them have pictures.

    Args:
        store: the store.
        data_dir: MM-IMDb's folder of posters, or None.
        follow_links: whether links in it that lead out of it are read.
        scanned: the collection that the store was built from, for pictures without ``data_dir``.
    """
    if not store.bad_inputs:
        return []
    rows = []
    inputs = None if scanned is None or data_dir is not None else Inputs(scanned)
    for at, bad in enumerate(store.bad_inputs[:LISTED]):
        picture, note = "", ""
        if data_dir is not None and at < PICTURED:
            picture, note = _picture(store, data_dir, bad, follow_links=follow_links)
        elif inputs is not None and at < PICTURED:
            picture, note = _pictured(store, bad, inputs.image)
        rows.append(BadRow(store.samples[bad.index].stem, bad, picture, note))
    return rows


def _picture(
    store: FeatureStore, data_dir: Path, bad: BadInput, *, follow_links: bool
) -> tuple[str, str]:
    """The picture and its note: the placeholder of a bad image, or the poster of a bad text."""
    path = files.image_path(data_dir, store.samples[bad.index])
    is_outside = not follow_links and leads_outside(path, data_dir.resolve())
    if bad.modality == "text" and is_outside:
        return "", f"the poster is {LEAVES}"
    return _pictured(store, bad, lambda _: files.read_capped(path, files.MAX_IMAGE_BYTES))


def _pictured(
    store: FeatureStore, bad: BadInput, read: Callable[[Sample], bytes | None]
) -> tuple[str, str]:
    """The picture and its note; ``read`` returns the bytes of a sample's image."""
    if bad.modality == "image":
        return _data(Image.new("RGB", (_SIDE * 2 // 3, _SIDE))), "black placeholder"
    chunk, position = divmod(bad.index, store.spec.chunk)
    record = store.ledger[chunk].samples[position]
    try:
        data = read(store.samples[bad.index])
        if data is None:
            return "", "no image"
        if hashlib.sha256(data).hexdigest() != record.image_sha256:
            return "", "the poster has changed since the build"
        poster = decode.image(data)
    except BadSampleError as error:
        return "", f"poster {error.reason}"
    poster.thumbnail((_SIDE, _SIDE))
    return _data(poster), "poster"


def _data(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
