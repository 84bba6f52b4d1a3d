"""Drop damaged chunks from a store, so that ``build --resume`` rebuilds exactly these."""

from __future__ import annotations

from pathlib import Path

from featurestore.errors import CorruptStoreError
from featurestore.storage import extension
from featurestore.storage.files import LocalFiles
from featurestore.storage.store import EXTENSION
from featurestore.system import durable, removal
from featurestore.verify.commits import COMMITS, LEDGER, record_names
from featurestore.verify.files import StoreFiles
from featurestore.verify.findings import Verification


def repair(root: Path, found: Verification) -> list[int]:
    """Removes the damaged chunks from the records and the ledger. Needs the store's lock, alone.

    The intact records become lines of the ledger; the damaged files of chunks stay until they are
    replaced. An unfinished extension is repaired like the store, or deleted if it cannot be
    repaired, because it can be built again. If this is interrupted, it can be repeated after
    another check.

    Returns:
        The numbers of the chunks that are not committed after the repair.

    Raises:
        CorruptStoreError: metadata is damaged, so that dropping chunks does not help.
    """
    _require_repairable(root, found)
    damaged = set(found.damaged_chunks)
    intact = {chunk: found.committed[chunk] for chunk in sorted(set(found.committed) - damaged)}
    if any(not finding.file.startswith(EXTENSION) for finding in found.findings):
        _rewrite(root, intact)
    if found.extension is not None and found.extension.findings:
        try:
            repair(root / EXTENSION, found.extension)
        except CorruptStoreError:
            removal.remove_folder(root / EXTENSION)
    return sorted(set(range(found.chunks)) - set(intact))


def _rewrite(root: Path, intact: dict[int, bytes]) -> None:
    """Leaves exactly the chunks ``intact``, by chunk their lines, as lines of the ledger.

    A record that is not to be a line is removed before the ledger is rewritten: afterwards, it
    would replace the line that was dropped.
    """
    files, store = LocalFiles(root), StoreFiles(root, Verification())
    names = record_names(store)
    kept = [n for n in names if intact.get(int(n.rpartition("/")[2])) == store.read_if_present(n)]
    files.remove(sorted(set(names) - set(kept)))
    durable.replace_file(root / LEDGER, b"".join(line + b"\n" for line in intact.values()))
    files.remove(kept)


def _require_repairable(root: Path, found: Verification) -> None:
    for finding in found.findings:
        if finding.chunk is not None or finding.file == LEDGER:
            continue
        if finding.file.startswith(f"{COMMITS}/"):
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
