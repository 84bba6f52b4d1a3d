"""Drop what is damaged, so that ``build --resume`` makes exactly that again."""

from __future__ import annotations

from pathlib import Path

from featurestore.errors import CorruptStoreError
from featurestore.storage import extension
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import EXTENSION
from featurestore.system import durable
from featurestore.verify.findings import Verification

# Damage to anything else is damage to what the store says of itself: nothing to repair it from.
_DROPPED = (Ledger.FILE,)


def repair(root: Path, found: Verification) -> list[int]:
    """Takes the damaged chunks out of the ledger. Needs the store's lock.

    The ledger is written anew from its sound lines; the damaged files stay where they are until
    they are replaced. An addition that is not finished is mended like the store, or where that
    cannot be done, dropped: it can be made again.

    Returns:
        The chunks that are not committed any more or never were.

    Raises:
        CorruptStoreError: the damage is not in chunks or the ledger, so dropping chunks is no cure.
    """
    _require_repairable(root, found)
    damaged = set(found.damaged_chunks)
    if any(not finding.file.startswith(EXTENSION) for finding in found.findings):
        sound = [found.committed[c] for c in sorted(found.committed) if c not in damaged]
        durable.replace_file(root / Ledger.FILE, b"".join(line + b"\n" for line in sound))
    if found.extension is not None and found.extension.findings:
        try:
            repair(root / EXTENSION, found.extension)
        except CorruptStoreError:
            durable.remove_folder(root / EXTENSION)
    return sorted(set(range(found.chunks)) - (set(found.committed) - damaged))


def _require_repairable(root: Path, found: Verification) -> None:
    for finding in found.findings:
        if finding.chunk is not None or finding.file in _DROPPED:
            continue
        if finding.file.startswith(EXTENSION):
            continue
        advice = (
            "It cannot be repaired from the rest of the store: restore the file, or build "
            "again with --overwrite."
        )
        if extension.is_pending(root):
            advice = "Nothing is lost: `build --resume` finishes it."
        raise CorruptStoreError(finding.file, finding.problem, advice=advice)
