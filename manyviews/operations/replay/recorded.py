"""The files of one sample, read as by a producer and compared with what a store recorded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from featurestore.errors import BadSampleError, InputError
from featurestore.records import BadInput, Sample, SampleRecord
from featurestore.system.links import LEAVES, leads_outside
from producers import decode
from producers.sources import source


def modalities(record: SampleRecord | None) -> tuple[str, ...]:
    """The modalities whose file was read when the store was made, and so was compared."""
    if record is None:
        return ()
    hashes = {"image": record.image_sha256, "text": record.text_sha256}
    return tuple(modality for modality, sha256 in hashes.items() if sha256)


def poster(
    data_dir: Path, sample: Sample, record: SampleRecord | None
) -> tuple[Image.Image | None, BadInput | None]:
    """The poster, mode ``RGB``, or None and what is wrong with it.

    Raises:
        InputError: the file is missing, or is not the recorded one.
    """
    known = _known_bad(record, "image")
    if known is not None and record is not None and not record.image_sha256:
        return None, known  # never read, so there is nothing to compare it with
    try:
        data = _read(source.image_path(data_dir, sample), source.MAX_IMAGE_BYTES)
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
    """The synopsis, and what is wrong with it or None; ``""`` where nothing of it can be used.

    Raises:
        InputError: the file is missing, or is not the recorded one.
    """
    known = _known_bad(record, "text")
    if known is not None and record is not None and not record.text_sha256:
        return "", known
    try:
        data = _read(source.text_path(data_dir, sample), source.MAX_TEXT_BYTES)
    except BadSampleError as error:
        return "", BadInput(sample.index, "text", error.reason, error.detail)
    if record is not None:
        _require_same(data, record.text_sha256, sample.text_name)
    if known is not None and known.reason == "out-of-memory":
        return "", known  # there may be more memory now
    decoded = decode.text(data)
    if decoded.reason is None:
        return decoded.text, None
    return decoded.text, BadInput(sample.index, "text", decoded.reason, decoded.detail)


def _known_bad(record: SampleRecord | None, modality: str) -> BadInput | None:
    found = [b for b in record.bad if b.modality == modality] if record is not None else []
    return found[0] if found else None


def require_inside(data_dir: Path, sample: Sample) -> None:
    """Refuses a sample with a link out of the data folder.

    Raises:
        InputError: one of its files is such a link.
    """
    folder = data_dir.resolve()
    for path in (source.image_path(data_dir, sample), source.text_path(data_dir, sample)):
        if leads_outside(path, folder):
            raise InputError(f"{path.name!r} in {data_dir} is {LEAVES}.")


def _read(path: Path, cap_bytes: int) -> bytes:
    """The file's bytes; one that is missing is the caller's mistake, not a bad sample."""
    try:
        return source.read_capped(path, cap_bytes)
    except BadSampleError as error:
        if error.reason != "missing":
            raise
        raise InputError(
            f"{path.name!r} is not in {path.parent}.\n"
            "Give the folder that the store was made from with --data-dir."
        ) from None


def _require_same(data: bytes, recorded: str, name: str) -> None:
    """Refuses a file that was read when the store was made and held something else then."""
    if not recorded:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != recorded:
        raise InputError(
            f"{name!r} is not the file that the store was made from, so its views are others.\n"
            f"  recorded SHA-256: {recorded}\n  found:            {found}\n"
            "Restore it, or leave --store away to see the views of what is there now."
        )
