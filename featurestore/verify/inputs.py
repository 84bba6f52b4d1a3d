"""Compare the inputs in a data folder with those that a store was built from, byte by byte.

Like ``verify``, this does not use the code that decides on ``--resume``: all files are read and
hashed again, even if their sizes and times are unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from featurestore.errors import CorruptStoreError, InputError
from featurestore.system.links import LEAVES, leads_outside
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.findings import Verification
from featurestore.verify.lines import read_line

# Opening a pipe or a terminal must not wait; Windows would translate the ends of lines.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_BLOCK_BYTES = 1 << 20
_SAMPLES = "records/samples.jsonl"


@dataclass(slots=True)
class InputVerification:
    """The result of a comparison of inputs.

    Attributes:
        compared: the number of inputs that were read and compared.
        unknown: the number of inputs without a recorded digest, because they could not be read or
            no feature uses their modality.
        changed: (file name, problem) of each input that differs from what was read, in the order of
            the samples.
    """

    compared: int = 0
    unknown: int = 0
    changed: list[tuple[str, str]] = field(default_factory=list)


def verify_inputs(
    root: Path,
    data_dir: Path,
    store: Verification,
    *,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> InputVerification:
    """Compares every input of a committed sample with the file of its name in ``data_dir``.

    Args:
        root: the folder of the store.
        data_dir: the data folder.
        store: the result of ``verify``, with the ledger's lines of the committed chunks.
        follow_links: whether to follow links that lead out of the folder; otherwise such a link
            counts as a changed input.
        progress: called with (chunks compared, chunks committed) after each chunk.

    Raises:
        InputError: the data folder does not exist.
        CorruptStoreError: the store's list of samples is damaged, so that file names are unknown.
        StorageError: the list or an input cannot be read.
    """
    if not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist.")
    names = _names(root)
    inside = None if follow_links else data_dir.resolve()
    result = InputVerification()
    for done, chunk in enumerate(sorted(store.committed), 1):
        body = read_line(store.committed[chunk])
        for pair, digests in zip(names[chunk * store.rows :], body["samples"], strict=False):
            for name, digest in zip(pair, digests, strict=False):
                _compare(data_dir, name, digest, result, inside)
        if progress is not None:
            progress(done, len(store.committed))
    return result


def _names(root: Path) -> list[tuple[str, str]]:
    """File names of each sample's poster and synopsis."""
    try:
        lines = (root / _SAMPLES).read_bytes().splitlines()
        return [(image, text) for _, image, text in map(json.loads, lines)]
    except OSError as e:
        if is_absent(e):
            raise CorruptStoreError(_SAMPLES, e.strerror or str(e)) from None
        raise refusal(root / _SAMPLES, e) from e
    except (ValueError, TypeError) as e:
        raise CorruptStoreError(_SAMPLES, str(e)) from None


def _compare(
    data_dir: Path, name: str, digest: str, result: InputVerification, inside: Path | None
) -> None:
    """Compares one input; unless ``inside`` is None, a link must not lead out of that folder."""
    if not digest:
        result.unknown += 1
        return
    result.compared += 1
    path = os.path.join(os.fsencode(data_dir), name.encode("utf-8", "surrogateescape"))  # noqa: PTH118  bytes
    if inside is not None and leads_outside(Path(os.fsdecode(path)), inside):
        result.changed.append((name, LEAVES))
        return
    try:
        now = _sha256(path)
    except OSError as e:
        if not is_absent(e):  # the file may be unchanged
            raise refusal(Path(os.fsdecode(path)), e) from e
        result.changed.append((name, e.strerror or str(e)))
        return
    if now != digest:
        problem = "not a file any more" if not now else f"SHA-256 {now}, and {digest} was read"
        result.changed.append((name, problem))


def _sha256(path: bytes) -> str:
    """Hex SHA-256 of a regular file; empty for a pipe, device or folder, without waiting."""
    descriptor = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        digest = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(descriptor)
