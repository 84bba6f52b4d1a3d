"""Compare the inputs of a collection with those that a store was built from, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurestore.errors import CorruptStoreError
from featurestore.records import Modality
from featurestore.system.refusals import is_absent, refusal
from featurestore.verify.findings import InputVerification, Verification
from featurestore.verify.lines import read_line

_MODALITIES: tuple[Modality, Modality] = ("image", "text")
_SAMPLES = "records/samples.jsonl"


@dataclass(frozen=True, slots=True)
class CurrentInput:
    """One input as it is now.

    Attributes:
        name: what messages call it.
        sha256: hex digest as the ledger records it; None if the sample has no such input.
        problem: why it cannot be hashed, or empty.
    """

    name: str
    sha256: str | None = None
    problem: str = ""


class CurrentInputs(Protocol):
    """Reads inputs as they are now; called in the order of the samples."""

    def __call__(
        self, id_: str, names: tuple[str | None, str | None], modality: Modality
    ) -> CurrentInput:
        """Reads and hashes an input of the sample with an id and, of MM-IMDb, its file names.

        Raises:
            StorageError: the machine or the file system refuses, so the input may be unchanged.
        """


def verify_inputs(
    root: Path,
    current: CurrentInputs,
    store: Verification,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> InputVerification:
    """Compares every input of a committed sample with the same input as it is now.

    Args:
        root: the folder of the store.
        current: reads the inputs.
        store: the result of ``verify``, with the ledger's lines of the committed chunks.
        progress: called with (chunks compared, chunks committed) after each chunk.

    Raises:
        CorruptStoreError: the store's list of samples is damaged.
        StorageError: the list or an input cannot be read.
    """
    lines = _lines(root)
    result = InputVerification()
    for done, chunk in enumerate(sorted(store.committed), 1):
        body = read_line(store.committed[chunk])
        for (id_, image, text), recorded in zip(
            lines[chunk * store.rows :], body["samples"], strict=False
        ):
            for modality, digest in zip(_MODALITIES, recorded, strict=False):
                if digest == "":
                    result.unknown += 1
                else:
                    _compare(current(id_, (image, text), modality), digest, result)
        if progress is not None:
            progress(done, len(store.committed))
    return result


def _lines(root: Path) -> Sequence[tuple[str, str | None, str | None]]:
    """Id and file names of each sample."""
    try:
        lines = (root / _SAMPLES).read_bytes().splitlines()
        return [(id_, image, text) for id_, image, text in map(json.loads, lines)]
    except OSError as e:
        if is_absent(e):
            raise CorruptStoreError(_SAMPLES, e.strerror or str(e)) from None
        raise refusal(root / _SAMPLES, e) from e
    except (ValueError, TypeError) as e:
        raise CorruptStoreError(_SAMPLES, str(e)) from None


def _compare(now: CurrentInput, digest: str | None, result: InputVerification) -> None:
    """Compares one input with its recorded digest, or with its absence."""
    result.compared += 1
    problem = now.problem
    if not problem and now.sha256 != digest:
        before = "there was none" if digest is None else f"{digest} was read"
        problem = f"SHA-256 {now.sha256}, and {before}" if now.sha256 else "there is none any more"
    if problem:
        result.changed.append((now.name, problem))
