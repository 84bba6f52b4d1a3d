"""Drop what is damaged, so that ``build --resume`` makes exactly that again."""

from __future__ import annotations

from pathlib import Path

from featurestore import durable
from featurestore.errors import CorruptStoreError
from featurestore.ledger import Ledger
from featurestore.verify import Verification

# Damage to anything else is damage to what the store says of itself: nothing to repair it from.
_DROPPED = (Ledger.FILE,)


def repair(root: Path, found: Verification) -> list[int]:
    """Takes the damaged chunks out of the ledger. Needs the store's lock.

    The ledger is written anew from its sound lines; the damaged files stay where they are until
    they are replaced.

    Returns:
        The chunks that are not committed any more or never were.

    Raises:
        CorruptStoreError: the damage is not in chunks or the ledger, so dropping chunks is no cure.
    """
    for finding in found.findings:
        if finding.chunk is None and finding.file not in _DROPPED:
            advice = (
                "It cannot be repaired from the rest of the store: restore the file, or build "
                "again with --overwrite."
            )
            raise CorruptStoreError(finding.file, finding.problem, advice=advice)
    damaged = set(found.damaged_chunks)
    sound = [found.committed[c] for c in sorted(found.committed) if c not in damaged]
    durable.replace_file(root / Ledger.FILE, b"".join(line + b"\n" for line in sound))
    return sorted(set(range(found.chunks)) - (set(found.committed) - damaged))
