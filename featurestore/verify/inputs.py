"""Hold the inputs in a data folder against what a store was made from, byte by byte.

Like ``verify``, nothing here asks the code that decides on ``--resume``: the files are read and
hashed again, whatever their sizes and times say.
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

_BLOCK_BYTES = 1 << 20
_SAMPLES = "records/samples.jsonl"


@dataclass(slots=True)
class InputVerification:
    """What a comparison of inputs found.

    Attributes:
        compared: inputs that were read and compared.
        unknown: inputs whose content the store does not know, as it could not be read then, or is
            of a modality that no feature is made of.
        changed: (file name, what is wrong) of each input that is not what was read, in the order of
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
        root: the store.
        data_dir: the data folder.
        store: what ``verify`` found: the committed chunks, with the ledger's lines.
        follow_links: compare also what links to outside the folder lead to; else such a link has
            taken the place of what was read.
        progress: told of (chunks compared, chunks committed) after each chunk.

    Raises:
        InputError: there is no such folder.
        CorruptStoreError: the store's list of samples is damaged, so no name is known.
        StorageError: the list or an input cannot be read, so nobody can tell whether it changed.
    """
    if not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist.")
    names = _names(root)
    inside = None if follow_links else data_dir.resolve()
    found = InputVerification()
    for done, chunk in enumerate(sorted(store.committed), 1):
        body = read_line(store.committed[chunk])
        for pair, digests in zip(names[chunk * store.rows :], body["samples"], strict=False):
            for name, digest in zip(pair, digests, strict=False):
                _compare(data_dir, name, digest, found, inside)
        if progress is not None:
            progress(done, len(store.committed))
    return found


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
    data_dir: Path, name: str, digest: str, found: InputVerification, inside: Path | None
) -> None:
    """Compares one input; a link must not lead out of the folder ``inside``, where there is one."""
    if not digest:
        found.unknown += 1
        return
    found.compared += 1
    path = os.path.join(os.fsencode(data_dir), name.encode("utf-8", "surrogateescape"))  # noqa: PTH118  bytes
    if inside is not None and leads_outside(Path(os.fsdecode(path)), inside):
        found.changed.append((name, LEAVES))
        return
    try:
        now = _sha256(path)
    except OSError as e:
        if not is_absent(e):  # nobody can tell whether it changed
            raise refusal(Path(os.fsdecode(path)), e) from e
        found.changed.append((name, e.strerror or str(e)))
        return
    if now != digest:
        problem = "not a file any more" if not now else f"SHA-256 {now}, and {digest} was read"
        found.changed.append((name, problem))


def _sha256(path: bytes) -> str:
    """Hex SHA-256 of a regular file; empty for anything else, which is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        digest = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            digest.update(block)
        return digest.hexdigest()
    finally:
        os.close(descriptor)
