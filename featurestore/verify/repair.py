"""Drop damaged chunks from the ledger, so that ``build --resume`` rebuilds exactly these."""

from __future__ import annotations

from pathlib import Path

from featurestore.errors import CorruptStoreError
from featurestore.storage import extension
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import EXTENSION
from featurestore.system import durable, removal
from featurestore.verify.findings import Verification

# Files outside chunks that a repair can rewrite; other metadata cannot be restored.
_DROPPED = (Ledger.FILE,)


def repair(root: Path, found: Verification) -> list[int]:
    """Removes the damaged chunks from the ledger. Needs the store's lock.

    The ledger is rewritten from its intact lines; the damaged files stay until they are replaced.
    An unfinished extension is repaired like the store, or deleted if it cannot be repaired, because
    it can be built again.

    Returns:
        The numbers of the chunks that are not committed after the repair.

    Raises:
        CorruptStoreError: metadata is damaged, so that dropping chunks does not help.
    """
    _require_repairable(root, found)
    damaged = set(found.damaged_chunks)
    if any(not finding.file.startswith(EXTENSION) for finding in found.findings):
        intact = [found.committed[c] for c in sorted(found.committed) if c not in damaged]
        durable.replace_file(root / Ledger.FILE, b"".join(line + b"\n" for line in intact))
    if found.extension is not None and found.extension.findings:
        try:
            repair(root / EXTENSION, found.extension)
        except CorruptStoreError:
            removal.remove_folder(root / EXTENSION)
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
