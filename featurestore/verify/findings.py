"""The results of ``verify``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged file or chunk.

    Attributes:
        file: the file's path, relative to the store.
        chunk: the number of the damaged chunk, or None if the damage is not in one chunk.
        problem: a one-line description of the damage.
    """

    file: str
    chunk: int | None
    problem: str

    def __str__(self) -> str:
        where = self.file if self.chunk is None else f"{self.file} (chunk {self.chunk})"
        return f"{where}: {self.problem}"


@dataclass(slots=True)
class InputVerification:
    """The result of a comparison of inputs.

    Attributes:
        compared: the number of inputs that were read and compared.
        unknown: the number of inputs without a recorded digest, because they could not be read or
            no feature uses their modality.
        changed: (name, problem) of each input that differs from what was read, in the order of the
            samples.
    """

    compared: int = 0
    unknown: int = 0
    changed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Verification:
    """The result of a check of a store.

    Attributes:
        findings: all damage, in the order of the check.
        notices: remarks about files that are never read, and about chunks that are not built yet.
        chunks: the number of chunks of the complete store; 0 if the store's record is unreadable.
        rows: the number of samples per chunk; the last chunk may have fewer.
        committed: intact lines of the ledger, and records that no line replaces, by chunk number.
        files: the number of chunk files whose content was read.
        extension: the result for an unfinished extension, or None; ``findings`` holds its damage
            too, with file names relative to the store.
        inputs: the comparison of the inputs with those of the build, or None.
    """

    findings: list[Finding] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    chunks: int = 0
    rows: int = 0
    committed: dict[int, bytes] = field(default_factory=dict)
    files: int = 0
    extension: Verification | None = None
    inputs: InputVerification | None = None

    @property
    def damaged_chunks(self) -> list[int]:
        """The numbers of the committed chunks that must be rebuilt."""
        return sorted({f.chunk for f in self.findings if f.chunk is not None})

    @property
    def missing(self) -> list[int]:
        """The numbers of the chunks without an intact line or record."""
        return sorted(set(range(self.chunks)) - set(self.committed))
