"""``verify`` and ``status``: what a store holds, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.options import (
    FOLDER,
    LISTED,
    common_options,
    is_quiet,
    json_option,
    say,
    store_option,
)
from featurestore.errors import ConfigError, InputError

if TYPE_CHECKING:
    from featurestore.verification import Verification
    from featurestore.verify_inputs import InputVerification


@click.command()
@store_option
@click.option(
    "--repair", is_flag=True, help="Drop damaged chunks; build --resume makes them again."
)
@click.option(
    "--verify-inputs", is_flag=True, help="Compare the content of all inputs in --data-dir as well."
)
@click.option("--data-dir", type=FOLDER, help="The posters and synopses, for --verify-inputs.")
@json_option
@common_options
def verify(
    store: Path, repair: bool, verify_inputs: bool, data_dir: Path | None, as_json: bool
) -> int:
    """Check every promise of a store: checksums, ledger, moments, completeness, stray files.

    Exits with 1 where something is damaged, and names each file and chunk; with --verify-inputs
    also where an input is not what the store was made from. A store that is not complete yet is
    not damaged. Nothing is changed without --repair, and no input ever.

    \b
    Example:
      python cli.py verify --store features
    """
    from featurestore.verify import verify as check
    from featurestore.verify_inputs import verify_inputs as compare
    from featurestore.writer import state_of, take_lock

    if verify_inputs != (data_dir is not None):
        raise ConfigError("--verify-inputs and --data-dir go together: give both or neither.")
    if state_of(store) != "store":
        raise InputError(f"There is no feature store at {store}.")
    lock = take_lock(store) if repair else None
    try:
        with chunk_progress() as progress:
            found = check(store, progress=progress)
            inputs = (
                None if data_dir is None else compare(store, data_dir, found, progress=progress)
            )
        to_make = _drop(store, found) if lock is not None else None
    finally:
        if lock is not None:
            lock.release()
    if as_json:
        click.echo(json.dumps(_verification_facts(found, inputs, to_make)))
    _say_verification(found, to_make)
    if inputs is not None:
        _say_inputs(inputs, data_dir)
    damaged = bool(found.findings) and to_make is None
    return 1 if damaged or (inputs is not None and inputs.changed) else 0


def _drop(store: Path, found: Verification) -> list[int] | None:
    """Repairs what can be; returns the chunks to make, None where nothing was damaged."""
    from featurestore.repair import repair

    return repair(store, found) if found.findings else None


def _verification_facts(
    found: Verification, inputs: InputVerification | None, to_make: list[int] | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "chunks": found.chunks,
        "committed": len(found.committed),
        "files": found.files,
        "findings": [[f.file, f.chunk, f.problem] for f in found.findings],
        "notices": found.notices,
        "repaired": to_make is not None,
        "to_make": found.missing if to_make is None else to_make,
    }
    if inputs is not None:
        facts |= {"inputs": inputs.compared, "changed_inputs": inputs.changed}
    return facts


def _say_verification(found: Verification, to_make: list[int] | None) -> None:
    say(f"{len(found.committed)} of {found.chunks} chunks committed, {found.files} files checked")
    for notice in found.notices:
        say(notice)
    for finding in found.findings:
        say(f"damaged: {finding}")
    if to_make is not None:
        say("repaired: what is damaged is not committed any more")
        if to_make:
            say(f"`build --resume` makes {len(to_make)} chunks: {to_make[:LISTED]}")
    elif found.findings:
        say("`verify --repair` drops the damaged chunks, and `build --resume` makes them again.")


def _say_inputs(inputs: InputVerification, data_dir: Path | None) -> None:
    unknown = f"; {inputs.unknown} were not read when the store was made" if inputs.unknown else ""
    say(f"{inputs.compared} inputs compared with {data_dir}{unknown}")
    for name, problem in inputs.changed:
        say(f"changed: {name!r}: {problem}")
    if inputs.changed:
        say("Restore them, or build again into another --store or with --overwrite.")


@contextmanager
def chunk_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere; it is told of (chunks done, all chunks)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("chunks", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command()
@store_option
@json_option
@common_options
def status(store: Path, as_json: bool) -> int:
    """Say what a store holds, what is done, and who is writing to it.

    \b
    Example:
      python cli.py status --store features
    """
    from featurestore.durable import lock_holder
    from featurestore.store import LOCK, FeatureStore

    found = FeatureStore(store)
    holder = lock_holder(store / LOCK)
    done = len(found.records)
    if as_json:
        facts = {
            "samples": found.spec.samples,
            "views": found.spec.views,
            "dims": dict(found.spec.dims),
            "done": done,
            "chunks": found.spec.chunks,
            "committed": len(found.ledger),
            "complete": found.complete,
            "bad": len(found.bad_inputs),
            "holder": holder,
            "fingerprint": found.fingerprint,
        }
        click.echo(json.dumps(facts))
        return 0
    features = ", ".join(f"{name} [{dim}]" for name, dim in found.spec.dims.items())
    click.echo(f"{store}: {found.spec.samples:,} samples x {found.spec.views} views: {features}")
    share = done / found.spec.samples
    state = "complete" if found.complete else "not complete; go on with build --resume"
    click.echo(f"{done:,} samples done ({share:.1%}), {state}")
    click.echo(f"{len(found.bad_inputs):,} bad inputs with placeholders")
    if holder is not None:
        click.echo(f"being written by process {holder[0]} on {holder[1]}")
    return 0
