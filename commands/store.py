"""``verify`` and ``status``: what a store holds, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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

if TYPE_CHECKING:
    from operations.watch import Progress

INTERRUPTED = 130
# How a watch ended, for a person.
END = {
    "complete": "{store} is complete.",
    "interrupted": "The build was interrupted; go on with build --resume.",
    "failed": "The build failed: {why}",
    "killed": "The build is gone without a word: it was killed. Go on with build --resume.",
    "not complete": "Nobody is writing to {store}; go on with build --resume.",
}


@click.command()
@store_option
@click.option(
    "--repair", is_flag=True, help="Drop damaged chunks; build --resume makes them again."
)
@click.option(
    "--verify-inputs", is_flag=True, help="Compare the content of all inputs in --data-dir as well."
)
@click.option("--data-dir", type=FOLDER, help="The posters and synopses, for --verify-inputs.")
@click.option(
    "--drop-changed",
    is_flag=True,
    help="With --verify-inputs, drop the chunks of changed inputs; build --resume makes them anew.",
)
@json_option
@common_options
def verify(
    store: Path,
    repair: bool,
    verify_inputs: bool,
    data_dir: Path | None,
    drop_changed: bool,
    as_json: bool,
) -> int:
    """Check every promise of a store: checksums, ledger, moments, completeness, stray files.

    Exits with 1 where something is damaged, and names each file and chunk; with --verify-inputs
    also where an input is not what the store was made from. A store that is not complete yet is
    not damaged. Nothing is changed without --repair or --drop-changed, and no input ever.

    After an input was mended that a placeholder stands in for, --drop-changed and build --resume
    give the store that a new build would.

    \b
    Example:
      python cli.py verify --store features
    """
    from featurestore.verify import verify as check
    from featurestore.verify_inputs import verify_inputs as compare
    from featurestore.writer import state_of, take_lock
    from producers.source import MAX_IMAGE_BYTES, MAX_TEXT_BYTES

    if verify_inputs != (data_dir is not None):
        raise ConfigError("--verify-inputs and --data-dir go together: give both or neither.")
    if drop_changed and not verify_inputs:
        raise ConfigError("--drop-changed needs --verify-inputs: say which inputs changed.")
    if state_of(store) != "store":
        raise InputError(f"There is no feature store at {store}.")
    lock = take_lock(store) if repair or drop_changed else None
    caps = {"image": MAX_IMAGE_BYTES, "text": MAX_TEXT_BYTES}
    inputs = to_make = dropped = None
    try:
        with chunk_progress() as progress:
            found = check(store, progress=progress)
            if data_dir is not None:
                inputs = compare(store, data_dir, found, caps=caps, progress=progress)
        if repair:
            to_make = _drop(store, found)
        if drop_changed and inputs is not None:
            dropped = _drop_changed(store, found, inputs, repaired=to_make is not None)
    finally:
        if lock is not None:
            lock.release()
    if as_json:
        click.echo(json.dumps(_verification_facts(found, inputs, to_make, dropped)))
    _say_verification(found, to_make)
    if inputs is not None:
        _say_inputs(inputs, data_dir, dropped)
    damaged = bool(found.findings) and to_make is None
    changed = inputs is not None and bool(inputs.changed) and dropped is None
    return 1 if damaged or changed else 0


def _drop(store: Path, found: Verification) -> list[int] | None:
    """Repairs what can be; returns the chunks to make, None where nothing was damaged."""
    from featurestore.repair import repair

    return repair(store, found) if found.findings else None


def _drop_changed(
    store: Path, found: Verification, inputs: InputVerification, *, repaired: bool
) -> list[int] | None:
    """Drops the chunks of changed inputs; returns those to make, None where none had changed."""
    from featurestore.repair import drop_changed

    if found.findings and not repaired:
        raise InputError(f"{store} is damaged; no chunk was dropped.\nAdd --repair.")
    return drop_changed(store, found, inputs) if inputs.changed else None


def _verification_facts(
    found: Verification,
    inputs: InputVerification | None,
    to_make: list[int] | None,
    dropped: list[int] | None,
) -> dict[str, Any]:
    made = dropped if dropped is not None else to_make
    facts: dict[str, Any] = {
        "chunks": found.chunks,
        "committed": len(found.committed),
        "files": found.files,
        "findings": [[f.file, f.chunk, f.problem] for f in found.findings],
        "notices": found.notices,
        "repaired": to_make is not None,
        "to_make": found.missing if made is None else made,
    }
    if inputs is not None:
        facts |= {"inputs": inputs.compared, "changed_inputs": inputs.changed}
        facts["dropped"] = [] if dropped is None else inputs.chunks
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


def _say_inputs(
    inputs: InputVerification, data_dir: Path | None, dropped: list[int] | None
) -> None:
    unknown = f"; {inputs.unknown} were not read when the store was made" if inputs.unknown else ""
    say(f"{inputs.compared} inputs compared with {data_dir}{unknown}")
    for name, problem in inputs.changed:
        say(f"changed: {name!r}: {problem}")
    if dropped is not None:
        say(f"dropped {len(inputs.chunks)} chunks; `build --resume` makes {len(dropped)}")
    elif inputs.changed:
        say("Restore them. If they are as they should be, --drop-changed drops their chunks, and")
        say("`build --resume` makes these again.")


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
@click.option(
    "--watch", is_flag=True, help="Look every second, until it is complete or nobody writes."
)
@json_option
@common_options
def status(store: Path, watch: bool, as_json: bool) -> int:
    """Say what a store holds, how fast it grows, and who is writing to it.

    --watch draws it anew every second on a terminal; into a pipe it prints a line when something
    changes, with --json an object. It ends with 0 when the store is complete, and with 1 when
    nobody writes to it and it is not. It never disturbs a build.

    \b
    Example:
      python cli.py status --store features --watch
    """
    from operations.watch import Looker

    if watch:
        try:
            return follow(store, as_json=as_json)
        except KeyboardInterrupt:
            return INTERRUPTED
    found = Looker(store).look()
    if as_json:
        click.echo(json.dumps(found.facts()))
    else:
        click.echo("\n".join(status_lines(found)))
    return 0


def follow(store: Path, *, as_json: bool) -> int:
    """Shows a store until it is complete or nobody writes to it; returns the exit code."""
    from rich.console import Console

    from operations.watch import watch

    console = Console()
    drawn = console.is_terminal and not as_json
    with live(console) if drawn else nullcontext() as show:
        last = None
        for found in watch(store):
            if show is not None:
                show(status_lines(found))
                continue
            # What a line says, but for the time left, which always changes.
            key = (found.part.done, found.holder, found.running, found.ended)
            if key != last:
                click.echo(json.dumps(found.facts()) if as_json else status_line(found))
            last = key
    say(END[found.ended].format(store=store, why=found.run.why if found.run else ""))
    return 0 if found.ended == "complete" else 1


@contextmanager
def live(console: Any) -> Iterator[Callable[[list[str]], None]]:
    """A place on a terminal that is drawn anew; what was drawn last stays."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as place:
        yield lambda lines: place.update(Text("\n".join(lines)), refresh=True)


def status_lines(found: Progress) -> list[str]:
    """Everything about a store, for a person."""
    part, store = found.part, found.store
    features = ", ".join(f"{name} [{dim}]" for name, dim in store.dims.items())
    lines = [f"{found.path}: {store.samples:,} samples x {store.views} views: {features}"]
    if found.addition is not None:
        added = ", ".join(part.dims)
        lines.append(f"being extended: {part.samples:,} samples x {part.views} views: {added}")
    state = "complete" if part.complete else "not complete"
    if not part.complete and found.holder is None:
        state += "; go on with build --resume"
    lines.append(
        f"{part.done:,} samples done ({part.done / part.samples:.1%}), "
        f"{part.committed:,} of {part.chunks:,} chunks, {state}"
    )
    if found.samples_per_s:
        lines.append(_rate(found))
    bad = ", ".join(f"{reason} {count:,}" for reason, count in store.bad.items())
    lines.append(f"{sum(store.bad.values()):,} bad inputs with placeholders{bad and f': {bad}'}")
    if found.holder is not None:
        pid, host = found.holder
        begun = "" if found.running else ", which is starting or repairing"
        lines.append(f"being written by process {pid} on {host}{begun}")
    elif found.run is not None and not store.complete:
        why = found.run.why.partition("\n")[0]
        lines.append(f"the last build: {found.run.end or 'killed'}{why and f', {why}'}")
    return lines


def status_line(found: Progress) -> str:
    """The same in one line, for a pipe."""
    part = found.part
    line = f"{part.done:,}/{part.samples:,} samples"
    if found.samples_per_s and found.running:
        line += f", {_rate(found)}"
    bad = sum(found.store.bad.values())
    return (
        line + (f", {bad:,} bad inputs" if bad else "") + (f", {found.ended}" * bool(found.ended))
    )


def _rate(found: Progress) -> str:
    from consumers.progress import clock

    rate = found.samples_per_s
    line = f"{rate:.1f} samples/s, {rate * found.part.views:,.0f} views/s"
    if not found.running:
        return f"{line} in the last build"
    slower = "" if found.run is None else f", slower side: {found.run.bottleneck}"
    return f"{line}, {clock(found.eta_s)} left{slower}"
