"""Read the files of one sample as a producer does, and compare them with the store's hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from featurestore.errors import BadSampleError, InputError
from featurestore.records import BadInput, Sample, SampleRecord
from featurestore.system.links import LEAVES, leads_outside
from producers import decode
from producers.sources import files


def modalities(record: SampleRecord | None) -> tuple[str, ...]:
    """The modalities with a recorded hash, that is, whose file was compared with the store."""
    if record is None:
        return ()
    hashes = {"image": record.image_sha256, "text": record.text_sha256}
    return tuple(modality for modality, sha256 in hashes.items() if sha256)


def poster(
    data_dir: Path, sample: Sample, record: SampleRecord | None
) -> tuple[Image.Image | None, BadInput | None]:
    """Reads the poster: an image of mode ``RGB`` and None, or None and the bad input.

    Raises:
        InputError: the file is missing, or differs from the recorded one.
    """
    known = _known_bad(record, "image")
    if known is not None and record is not None and not record.image_sha256:
        return None, known  # the build did not read it: there is no hash to compare with
    try:
        data = _read(files.image_path(data_dir, sample), files.MAX_IMAGE_BYTES)
        if record is not None:
            _require_same(data, record.image_sha256, sample.image_name)
        if known is not None:
            return None, known
        return decode.image(data), None
    except BadSampleError as error:
        return None, BadInput(sample.index, "image", error.reason, error.detail)


def text(
    data_dir: Path, sample: Sample, record: SampleRecord | None
) -> tuple[str, BadInput | None]:
    """Reads the synopsis: the usable text, possibly ``""``, and the bad input or None.

    Raises:
        InputError: the file is missing, or differs from the recorded one.
    """
    known = _known_bad(record, "text")
    if known is not None and record is not None and not record.text_sha256:
        return "", known
    try:
        data = _read(files.text_path(data_dir, sample), files.MAX_TEXT_BYTES)
    except BadSampleError as error:
        return "", BadInput(sample.index, "text", error.reason, error.detail)
    if record is not None:
        _require_same(data, record.text_sha256, sample.text_name)
    if known is not None and known.reason == "out-of-memory":
        return "", known  # even if there is enough memory now
    decoded = decode.text(data)
    if decoded.reason is None:
        return decoded.text, None
    return decoded.text, BadInput(sample.index, "text", decoded.reason, decoded.detail)


def _known_bad(record: SampleRecord | None, modality: str) -> BadInput | None:
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


def _read(path: Path, cap_bytes: int) -> bytes:
    """The file's bytes; a missing file is an InputError here, not a bad sample."""
    try:
        return files.read_capped(path, cap_bytes)
    except BadSampleError as error:
        if error.reason != "missing":
            raise
        raise InputError(
            f"{path.name!r} is not in {path.parent}.\n"
            "Give --data-dir the folder that the store was built from."
        ) from None


def _require_same(data: bytes, recorded: str | None, name: str | None) -> None:
    """Refuses a file whose SHA-256 differs from the recorded one; ``""`` is no record."""
    if not recorded:
        return
    digest = hashlib.sha256(data).hexdigest()
    if digest != recorded:
        raise InputError(
            f"{name!r} is not the file that the store was built from, so its views would differ.\n"
            f"  recorded SHA-256: {recorded}\n  found:            {digest}\n"
            "Restore it, or remove --store to see the views of the current file."
        )
