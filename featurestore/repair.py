"""Drop what is damaged or out of date, so that ``build --resume`` makes exactly that again."""

from __future__ import annotations

from pathlib import Path

from featurestore import durable, extension
from featurestore.errors import CorruptStoreError, InputError
from featurestore.ledger import Ledger
from featurestore.store import EXTENSION
from featurestore.verification import Verification
from featurestore.verify_inputs import InputVerification

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
        _keep(root, found, damaged)
    if found.extension is not None and found.extension.findings:
        try:
            repair(root / EXTENSION, found.extension)
        except CorruptStoreError:
            durable.remove_folder(root / EXTENSION)
    return sorted(set(range(found.chunks)) - (set(found.committed) - damaged))


def drop_changed(root: Path, found: Verification, inputs: InputVerification) -> list[int]:
    """Takes the chunks out of the ledger whose inputs are others now. Needs the store's lock.

    Args:
        root: the store; damage that was found is repaired.
        found: what ``verify`` found of it.
        inputs: what ``verify_inputs`` found.

    Returns:
        The chunks that are not committed any more or never were.

    Raises:
        InputError: inputs are gone, or most of them are others, so that it may be the wrong folder;
            or something is being added to the store, which holds the old inputs as well.
    """
    unchanged = "; no chunk was dropped for its inputs.\n"
    if (root / EXTENSION).is_dir():
        raise InputError(
            f"An extension of {root} is not finished{unchanged}"
            f"Finish it with the old inputs and --resume, or delete {root / EXTENSION} first."
        )
    if inputs.gone:
        raise InputError(
            f"{inputs.gone} inputs are gone or cannot be read{unchanged}"
            "Restore them: rows are addressed by position, so a sample cannot be taken out."
        )
    if 2 * len(inputs.changed) > inputs.compared:
        raise InputError(
            f"{len(inputs.changed)} of {inputs.compared} inputs are others: is it the right "
            f"--data-dir?{unchanged[1:]}If it is, build into another --store or with --overwrite."
        )
    dropped = {*inputs.chunks, *found.damaged_chunks}
    _keep(root, found, dropped)
    return sorted(set(range(found.chunks)) - (set(found.committed) - dropped))


def _keep(root: Path, found: Verification, dropped: set[int]) -> None:
    """Writes the ledger anew, without the chunks that are dropped."""
    kept = [found.committed[c] for c in sorted(found.committed) if c not in dropped]
    durable.replace_file(root / Ledger.FILE, b"".join(line + b"\n" for line in kept))


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
