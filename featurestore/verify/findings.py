"""What ``verify`` found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as promised.

    Attributes:
        file: relative to the store.
        chunk: the chunk that it spoils, or None where it is not one chunk's.
        problem: one line.
    """

    file: str
    chunk: int | None
    problem: str

    def __str__(self) -> str:
        where = self.file if self.chunk is None else f"{self.file} (chunk {self.chunk})"
        return f"{where}: {self.problem}"


@dataclass(slots=True)
class Verification:
    """What a check found.

    Attributes:
        findings: everything that is damaged, in the order of the check.
        notices: leftovers that are never read, and chunks that are not made yet.
        chunks: chunks of a complete store; 0 where the store's own record is unreadable.
        rows: samples per chunk, of which the last one may have fewer.
        committed: the chunks that sound lines of the ledger name, with these lines.
        files: number of chunk files whose content was read.
        extension: the same for an addition that is not finished, or None; ``findings`` holds what
            is wrong with it as well, by its name in the store.
    """

    findings: list[Finding] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    chunks: int = 0
    rows: int = 0
    committed: dict[int, bytes] = field(default_factory=dict)
    files: int = 0
    extension: Verification | None = None

    @property
    def damaged_chunks(self) -> list[int]:
        """The committed chunks to make again."""
        return sorted({f.chunk for f in self.findings if f.chunk is not None})

    @property
    def missing(self) -> list[int]:
        """The chunks that no sound line of the ledger names."""
        return sorted(set(range(self.chunks)) - set(self.committed))
