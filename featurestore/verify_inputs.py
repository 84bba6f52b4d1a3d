"""Hold the inputs in a data folder against what a store was made from, byte by byte.

Like ``verify``, nothing here asks the code that decides on ``--resume``: the files are read and
hashed again, whatever their sizes and times say.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurestore.errors import CorruptStoreError, InputError
from featurestore.verification import Verification
from featurestore.verify_lines import read_line

_BLOCK_BYTES = 1 << 20
_MODALITIES = ("image", "text")
_SAMPLES = "records/samples.jsonl"


@dataclass(slots=True)
class InputVerification:
    """What a comparison of inputs found.

    Attributes:
        compared: inputs that were read and compared.
        unknown: inputs whose content the store does not know, as it could not be read then nor now,
            or is of a modality that no feature is made of.
        changed: (file name, what is wrong) of each input that is not what was read, in the order of
            the samples; one that could not be read then, and can be now, is among them.
        chunks: the chunks whose samples have these inputs.
        gone: how many of them are no files that can be read now.
    """

    compared: int = 0
    unknown: int = 0
    changed: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    gone: int = 0


def verify_inputs(
    root: Path,
    data_dir: Path,
    store: Verification,
    *,
    caps: Mapping[str, int],
    progress: Callable[[int, int], None] | None = None,
) -> InputVerification:
    """Compares every input of a committed sample with the file of its name in ``data_dir``.

    Args:
        root: the store.
        data_dir: the data folder.
        store: what ``verify`` found: the committed chunks, with the ledger's lines.
        caps: the most bytes of an ``image`` and of a ``text``; a longer one is not read.
        progress: told of (chunks compared, chunks committed) after each chunk.

    Raises:
        InputError: there is no such folder.
        CorruptStoreError: the store's list of samples cannot be read, so no name is known.
    """
    if not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist.")
    names = _names(root)
    found = InputVerification()
    for done, chunk in enumerate(sorted(store.committed), 1):
        body = read_line(store.committed[chunk])
        first = chunk * store.rows
        bad = [(index, modality) for index, modality, _, _ in body["bad"]]
        before = len(found.changed)
        pairs = zip(names[first:], body["samples"], strict=False)
        for index, (pair, digests) in enumerate(pairs, first):
            for modality, name, digest in zip(_MODALITIES, pair, digests, strict=False):
                if digest or (index, modality) in bad:
                    _compare(data_dir, name, digest, caps[modality], found)
                else:
                    found.unknown += 1
        if len(found.changed) > before:
            found.chunks.append(chunk)
        if progress is not None:
            progress(done, len(store.committed))
    return found


def _names(root: Path) -> list[tuple[str, str]]:
    """File names of each sample's poster and synopsis."""
    try:
        lines = (root / _SAMPLES).read_bytes().splitlines()
        return [(image, text) for _, image, text in map(json.loads, lines)]
    except (OSError, ValueError, TypeError) as e:
        raise CorruptStoreError(_SAMPLES, str(e)) from None


def _compare(data_dir: Path, name: str, digest: str, cap: int, found: InputVerification) -> None:
    """``digest`` is empty for an input that could not be read when its sample was made."""
    path = os.path.join(os.fsencode(data_dir), name.encode("utf-8", "surrogateescape"))  # noqa: PTH118  bytes
    try:
        now, problem = _sha256(path, cap), "not a file any more"
    except OSError as e:
        now, problem = "", e.strerror or str(e)
    if not digest and not now:
        found.unknown += 1
        return
    found.compared += 1
    if now and digest:
        problem = f"SHA-256 {now}, and {digest} was read"
    elif now:
        problem = "it could not be read, and can be now"
    if now != digest:
        found.changed.append((name, problem))
        found.gone += not now


def _sha256(path: bytes, cap: int) -> str:
    """Hex SHA-256 of a regular file; empty for anything else, which is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return ""
        if status.st_size > cap:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        digest = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(descriptor)
