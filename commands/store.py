"""``verify`` and ``status``: what a store holds, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from commands.options import LISTED, common_options, is_quiet, json_option, say, store_option
from featurestore.errors import InputError


@click.command()
@store_option
@click.option(
    "--repair", is_flag=True, help="Drop damaged chunks; build --resume makes them again."
)
@json_option
@common_options
def verify(store: Path, repair: bool, as_json: bool) -> int:
    """Check every promise of a store: checksums, ledger, moments, completeness, stray files.

    Exits with 1 where something is damaged, and names each file and chunk. A store that is not
    complete yet is not damaged. Nothing is changed without --repair.

    \b
    Example:
      python cli.py verify --store features
    """
    from featurestore.repair import repair as drop
    from featurestore.verify import verify as check
    from featurestore.writer import state_of, take_lock

    if state_of(store) != "store":
        raise InputError(f"There is no feature store at {store}.")
    lock = take_lock(store) if repair else None
    try:
        with chunk_progress() as progress:
            found = check(store, progress=progress)
        repaired = lock is not None and bool(found.findings)
        to_make = drop(store, found) if repaired else found.missing
    finally:
        if lock is not None:
            lock.release()
    if as_json:
        facts = {
            "chunks": found.chunks,
            "committed": len(found.committed),
            "files": found.files,
            "findings": [[f.file, f.chunk, f.problem] for f in found.findings],
            "notices": found.notices,
            "repaired": repaired,
            "to_make": to_make,
        }
        click.echo(json.dumps(facts))
    say(f"{len(found.committed)} of {found.chunks} chunks committed, {found.files} files checked")
    for notice in found.notices:
        say(notice)
    for finding in found.findings:
        say(f"damaged: {finding}")
    if repaired:
        say("repaired: what is damaged is not committed any more")
        if to_make:
            say(f"`build --resume` makes {len(to_make)} chunks: {to_make[:LISTED]}")
    elif found.findings:
        say("`verify --repair` drops the damaged chunks, and `build --resume` makes them again.")
    return 1 if found.findings and not repaired else 0


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
