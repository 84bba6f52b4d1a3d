"""``verify``: check a store, its inputs, and the files written from it for changes."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import ConfigError, InputError
from featurestore.wording import amount
from manyviews.commands.inputs import InputOptions, input_options
from manyviews.commands.options import (
    FOLDER,
    LISTED,
    chunk_progress,
    common_options,
    json_option,
    say,
    store_option,
)

if TYPE_CHECKING:
    from featurestore.verify.findings import Finding, InputVerification, Verification
    from producers.sources.collection import CollectionConfig

_MANIFEST = "_manifest.json"
_LABELS = "_labels"


@click.command()
@store_option
@click.option("--repair", is_flag=True, help="Drop damaged chunks; build --resume rebuilds them.")
@click.option(
    "--verify-inputs",
    is_flag=True,
    help="Also compare the content of all inputs with that of the build.",
)
@input_options
@click.option(
    "--materialized",
    type=FOLDER,
    help="Also compare the embeddings and labels in this folder with their manifests.",
)
@json_option
@common_options
def verify(
    store: Path,
    repair: bool,
    verify_inputs: bool,
    inputs: InputOptions,
    materialized: Path | None,
    as_json: bool,
) -> int:
    """Check the integrity of a store: checksums, ledger, moments, completeness, stray files.

    Exits with 1 if something is damaged, and names each file and chunk; with --verify-inputs also
    if an input differs from the one that the store was built from, with --materialized if a file
    differs from what was written. An incomplete store is not damaged. Without --repair nothing is
    changed; inputs are never changed.

    \b
    Example:
      python cli.py verify --store features
    """
    from featurestore.storage.creation import state_of
    from featurestore.storage.writer import take_lock

    if inputs.are_given and not verify_inputs:
        raise ConfigError("Inputs are read with --verify-inputs only: add it, or name no inputs.")
    collection = inputs.require() if verify_inputs else None
    if state_of(store) != "store":
        raise InputError(f"There is no feature store at {store}.")
    with ExitStack() as stack:
        if repair:
            stack.callback(take_lock(store).release)
        outcome = _look(store, collection)
        if repair and outcome.store.findings:
            outcome.repair(store)
    if materialized is not None:
        outcome.files, outcome.files_checked = _materialized(materialized)
    if as_json:
        click.echo(json.dumps(outcome.facts()))
    outcome.say(collection)
    return 1 if outcome.is_bad else 0


def _look(store: Path, collection: CollectionConfig | None) -> _Outcome:
    from featurestore.verify.store import verify as check

    with chunk_progress() as progress:
        verified = check(store, progress=progress)
        if collection is None:
            return _Outcome(verified)
        from manyviews.operations.current_inputs import compare

        return _Outcome(verified, compare(store, collection, verified, progress=progress))


def _materialized(folder: Path) -> tuple[list[Finding], int]:
    """The damage to the files of each manifest in a folder, and the number of files checked."""
    from featurestore.imdb.label_files import verify_labels
    from featurestore.imdb.labels_manifest import verify_augmented
    from featurestore.imdb.materialize import PREFIX, verify_materialized
    from featurestore.labels.files import RECORD_FILE
    from featurestore.labels.record import verify_record

    names = [path.name.removesuffix(_MANIFEST) for path in sorted(folder.glob(f"*{_MANIFEST}"))]
    embeddings = [name for name in names if not name.endswith(_LABELS)]
    augmented = [name.removesuffix(_LABELS) for name in names if name.endswith(_LABELS)]
    checked: list[str] = []
    findings = verify_labels(folder, checked=checked.append)
    findings += verify_record(folder / RECORD_FILE, checked=checked.append)
    for prefix in augmented:
        findings += verify_augmented(folder, prefix, checked=checked.append)
    if not (embeddings or checked):
        embeddings = [PREFIX]  # whose manifest is missing
    for prefix in embeddings:
        findings += verify_materialized(folder, prefix, checked=checked.append)
    return findings, len(checked)


def _writer(file: str) -> str:
    """The command that writes a materialized file or a label file."""
    from featurestore.imdb.label_files import CLASS_NAMES_FILE, IDS_FILE, LABELS_FILE, RECORD_FILE
    from featurestore.labels.files import FILES

    if file in (CLASS_NAMES_FILE, IDS_FILE, LABELS_FILE, RECORD_FILE, *FILES):
        return "labels"
    augmented = file.endswith((f"{_LABELS}.npy", f"{_LABELS}{_MANIFEST}"))
    return "labels --augment" if augmented else "materialize"


@dataclass(slots=True)
class _Outcome:
    """The result of a verification, and of its repair.

    Attributes:
        store: the findings about the store.
        inputs: the findings about the inputs, or None without ``--verify-inputs``.
        files: the findings about materialized files, or None without ``--materialized``.
        files_checked: number of materialized files that were checked.
        to_make: the chunks to build after a repair, or None if nothing was repaired.
    """

    store: Verification
    inputs: InputVerification | None = None
    files: list[Finding] | None = None
    files_checked: int = 0
    to_make: list[int] | None = None

    def repair(self, store: Path) -> None:
        """Drops the damaged chunks from the store."""
        from featurestore.verify.repair import repair

        self.to_make = repair(store, self.store)

    @property
    def is_bad(self) -> bool:
        """Whether any damage or change remains."""
        damaged = bool(self.store.findings) and self.to_make is None
        changed = self.inputs is not None and bool(self.inputs.changed)
        return damaged or changed or bool(self.files)

    @property
    def damaged(self) -> int:
        """Number of findings, in the store and in materialized files."""
        return len(self.store.findings) + len(self.files or [])

    def facts(self) -> dict[str, Any]:
        """The whole result as plain values for ``--json``."""
        facts: dict[str, Any] = {
            "chunks": self.store.chunks,
            "committed": len(self.store.committed),
            "files": self.store.files,
            "findings": [[f.file, f.chunk, f.problem] for f in self.store.findings],
            "notices": self.store.notices,
            "damaged": self.damaged,
            "ok": not self.is_bad,
            "repaired": self.to_make is not None,
            "to_make": self.store.missing if self.to_make is None else self.to_make,
        }
        if self.inputs is not None:
            facts |= {"inputs": self.inputs.compared, "changed_inputs": self.inputs.changed}
        if self.files is not None:
            facts["materialized"] = [[f.file, f.problem] for f in self.files]
            facts["materialized_files"] = self.files_checked
        return facts

    def say(self, collection: CollectionConfig | None) -> None:
        """Prints the result as text."""
        verified = self.store
        say(f"{len(verified.committed):,} of {amount(verified.chunks, 'chunk')} committed")
        for notice in verified.notices:
            say(notice)
        for finding in verified.findings:
            say(f"damaged: {finding}")
        if self.to_make is not None:
            say("repaired: the damaged chunks are no longer committed")
            if self.to_make:
                listed = self.to_make[:LISTED]
                say(f"`build --resume` rebuilds {amount(len(self.to_make), 'chunk')}: {listed}")
        elif verified.findings:
            say("`verify --repair` drops damaged chunks, and `build --resume` rebuilds them.")
        if self.inputs is not None:
            self._say_inputs(self.inputs, "" if collection is None else collection.path)
        for finding in self.files or []:
            say(f"damaged: {finding}; `{_writer(finding.file)}` writes it again")
        self._say_sum()

    def _say_sum(self) -> None:
        """Prints the last line: whether anything is damaged, and how much was checked."""
        parts = [self.store] + ([self.store.extension] if self.store.extension else [])
        checked = [
            amount(sum(len(part.committed) for part in parts), "chunk"),
            amount(sum(part.files for part in parts), "file") + " checked",
        ]
        if self.files is not None:
            checked.append(amount(self.files_checked, "materialized file") + " checked")
        if self.inputs is not None:
            checked.append(amount(self.inputs.compared, "input") + " compared")
        head = "nothing damaged"
        if self.damaged:
            head = f"{amount(self.damaged, 'problem')} found"
        if self.inputs is not None and self.inputs.changed:
            head += f", {amount(len(self.inputs.changed), 'input')} changed"
        say(f"{head}: {', '.join(checked)}")

    def _say_inputs(self, inputs: InputVerification, path: str) -> None:
        unknown = (
            f"; {inputs.unknown:,} were not read when the store was built" if inputs.unknown else ""
        )
        say(f"{amount(inputs.compared, 'input')} compared with {path}{unknown}")
        for name, problem in inputs.changed:
            say(f"changed: {name!r}: {problem}")
        if inputs.changed:
            say("Restore them; or, if the changes are intended, rebuild their chunks with")
            say("`build --resume --remake-changed`.")
