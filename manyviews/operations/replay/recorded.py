"""Read the inputs of one sample as a producer does, and compare them with the store's hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from featurestore.errors import BadSampleError, InputError
from featurestore.records import BadInput, Modality, Sample, SampleRecord
from featurestore.storage.store import FeatureStore
from featurestore.system.links import LEAVES, leads_outside
from producers import decode
from producers.sources import files
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.kinds import scan_collection
from producers.sources.pairs import PairPlaces
from producers.sources.readers import Texts, usable
from producers.sources.scan import Inputs, Scan


@dataclass(frozen=True, slots=True)
class Place:
    """One sample of a collection.

    Attributes:
        found: the collection.
        sample: the sample as it is numbered there, which may be another number than in a store.
        record: what a store has recorded of it, or None.
    """

    found: Scan
    sample: Sample
    record: SampleRecord | None = None

    def name(self, modality: Modality) -> str:
        """What messages call an input."""
        return self.found.places.names(self.sample)[modality == "text"]


def stored_scan(collection: CollectionConfig, store: FeatureStore) -> Scan:
    """Scans the collection that a store was built from.

    A folder in the layout of MM-IMDb is not scanned, because the store records its file names.
    """
    if collection.kind != MM_IMDB:
        return scan_collection(collection)
    data_dir = Path(collection.path)
    return Scan(collection, store.samples, PairPlaces(data_dir, store.samples))


def sample_now(found: Scan, sample: Sample) -> Sample:
    """The sample with the id of a store's sample.

    Raises:
        InputError: the collection does not contain it, or it is a link out of the folder.
    """
    if found.collection.kind == MM_IMDB:
        if not found.collection.follow_links:
            require_inside(found.path, sample)
        return sample
    if sample.index < len(found.samples) and found.samples[sample.index].stem == sample.stem:
        return found.samples[sample.index]
    same = next((other for other in found.samples if other.stem == sample.stem), None)
    if same is None:
        raise InputError(
            f"{sample.stem!r} is not in {found.path}.\n"
            "Name the inputs that the store was built from."
        )
    return same


def modalities(record: SampleRecord | None) -> tuple[str, ...]:
    """The modalities with a recorded hash, that is, whose input was compared with the store."""
    if record is None:
        return ()
    hashes = {"image": record.image_sha256, "text": record.text_sha256}
    return tuple(modality for modality, sha256 in hashes.items() if sha256)


def poster(place: Place) -> tuple[Image.Image | None, BadInput | None]:
    """Reads the image: of mode ``RGB`` and None, or None and the bad input; None if absent.

    Raises:
        InputError: the image is missing, or differs from the recorded one.
    """
    record, known = place.record, _known_bad(place.record, "image")
    if known is not None and record is not None and not record.image_sha256:
        return None, known  # the build did not read it: there is no hash to compare with
    try:
        data = _image(place)
        digest = None if data is None else hashlib.sha256(data).hexdigest()
        if record is not None:
            _require_same(place, "image", record.image_sha256, digest)
        if known is not None or data is None:
            return None, known
        return decode.image(data), None
    except BadSampleError as error:
        return None, BadInput(place.sample.index, "image", error.reason, error.detail)


def text(place: Place, *, every: bool) -> tuple[str, list[str], BadInput | None]:
    """Reads the texts.

    Args:
        place: the sample.
        every: whether each text is needed, not the clean text alone.

    Returns:
        The usable clean text, possibly ``""``; each text if ``every``; and the bad input or None.

    Raises:
        InputError: they are missing, or differ from the recorded ones.
    """
    record, known = place.record, _known_bad(place.record, "text")
    if known is not None and record is not None and not record.text_sha256:
        return "", [], known
    try:
        texts = _texts(place)
    except BadSampleError as error:
        return "", [], BadInput(place.sample.index, "text", error.reason, error.detail)
    if record is not None:
        digest = None if texts is None else texts.sha256
        _require_same(place, "text", record.text_sha256, digest)
    if texts is None or (known is not None and known.reason == "out-of-memory"):
        return "", [], known  # even if there is enough memory now
    decoded, each = usable(texts, every=every)
    if decoded.reason is None:
        return decoded.text, each, None
    bad = BadInput(place.sample.index, "text", decoded.reason, decoded.detail)
    return decoded.text, each, bad


def _known_bad(record: SampleRecord | None, modality: Modality) -> BadInput | None:
    bad = [b for b in record.bad if b.modality == modality] if record is not None else []
    return bad[0] if bad else None


def require_inside(data_dir: Path, sample: Sample) -> None:
    """Refuses a sample with a link that leads out of the data folder.

    Raises:
        InputError: one of its files is such a link.
    """
    folder = data_dir.resolve()
    for path in (files.image_path(data_dir, sample), files.text_path(data_dir, sample)):
        if leads_outside(path, folder):
            raise InputError(f"{path.name!r} in {data_dir} is {LEAVES}.")


def _image(place: Place) -> bytes | None:
    """The image's bytes; a missing file is an InputError here, not a bad sample."""
    try:
        return Inputs(place.found).image(place.sample)
    except BadSampleError as error:
        raise _unless_missing(place, "image", error) from None


def _texts(place: Place) -> Texts | None:
    try:
        return Inputs(place.found).texts(place.sample)
    except BadSampleError as error:
        raise _unless_missing(place, "text", error) from None


def _unless_missing(
    place: Place, modality: Modality, error: BadSampleError
) -> BadSampleError | InputError:
    if error.reason != "missing":
        return error
    what = "inputs"
    if place.found.collection.kind == MM_IMDB:
        what = "--data-dir the folder"
    return InputError(
        f"{place.name(modality)!r} is not in {place.found.path}.\n"
        f"Give {what} that the store was built from."
    )


def _require_same(
    place: Place, modality: Modality, recorded: str | None, digest: str | None
) -> None:
    """Refuses an input whose SHA-256 differs from the recorded one; ``""`` is no record."""
    if recorded in ("", digest):
        return
    name, what = place.name(modality), "file" if place.found.collection.kind == MM_IMDB else "input"
    raise InputError(
        f"{name!r} is not the {what} that the store was built from, so its views would differ.\n"
        f"  recorded SHA-256: {recorded or 'none: it was absent'}\n"
        f"  found:            {digest or 'none: it is absent'}\n"
        "Restore it, or remove --store to see the views of the current file."
    )
