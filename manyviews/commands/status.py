"""``status``: what a store holds, how fast it grows, and who is writing to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.system.locks import Holder
from featurestore.wording import amount
from manyviews.commands.options import common_options, json_option, say, store_option

if TYPE_CHECKING:
    from manyviews.operations.watch.watch import Progress

INTERRUPTED = 130
# How a watch ended, for a person.
END = {
    "complete": "{store} is complete.",
    "interrupted": "The build was interrupted; go on with build --resume.",
    "failed": "The build failed: {why}",
    "killed": "The build is gone without a word: it was killed. Go on with build --resume.",
    "not complete": "Nobody is writing to {store}; go on with build --resume.",
    "unknown": "Nothing changes, and nobody can tell whether a build is at it (no file locks).",
}


@click.command()
@store_option
@click.option(
    "--watch",
    is_flag=True,
    help="Look every second, until it is complete or nobody writes; wait where there is none yet.",
)
@json_option
@common_options
def status(store: Path, watch: bool, as_json: bool) -> int:
    """Say what a store holds, how fast it grows, and who is writing to it.

    --watch draws it anew every second on a terminal; into a pipe it prints a line when something
    changes, with --json an object. It ends with 0 when the store is complete, and with 1 when
    nobody writes to it and it is not. Started before the build, it waits for the store. It never
    disturbs a build.

    \b
    Example:
      python cli.py status --store features --watch
    """
    from manyviews.operations.watch.watch import Looker

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

    from manyviews.operations.watch.watch import watch

    console = Console()
    drawn = console.is_terminal and not as_json

    def waiting() -> None:
        say(f"There is no feature store at {store} yet: waiting for a build to start.")

    with live(console) if drawn else nullcontext() as show:
        last = None
        for found in watch(store, waiting=waiting):
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
    shape = f"{amount(store.samples, 'sample')} x {amount(store.views, 'view')}"
    lines = [f"{found.path}: {shape}: {features}"]
    if found.addition is not None:
        added = ", ".join(part.dims)
        shape = f"{amount(part.samples, 'sample')} x {amount(part.views, 'view')}"
        lines.append(f"being extended: {shape}: {added}")
    state = "complete" if part.complete else "not complete"
    if not part.complete and found.holder is None:
        state += "; go on with build --resume"
    lines.append(
        f"{amount(part.done, 'sample')} done ({part.done / part.samples:.1%}), "
        f"{part.committed:,} of {amount(part.chunks, 'chunk')}, {state}"
    )
    if found.samples_per_s:
        lines.append(_rate(found))
    bad = ", ".join(f"{reason} {count:,}" for reason, count in store.bad.items())
    count = sum(store.bad.values())
    holders = (
        f"{amount(count, 'bad input')} with {'a placeholder' if count == 1 else 'placeholders'}"
    )
    lines.append(f"{holders}{bad and f': {bad}'}")
    if isinstance(found.holder, Holder):
        pid, host = found.holder
        begun = "" if found.running else ", which is starting or repairing"
        lines.append(f"being written by process {pid} on {host}{begun}")
    elif found.holder is not None and found.ended == "":
        lines.append("nobody can tell whether it is being written: its lock cannot be asked")
    elif found.run is not None and not store.complete:
        why = found.run.why.partition("\n")[0]
        lines.append(f"the last build: {found.run.end or 'killed'}{why and f', {why}'}")
    return lines


def status_line(found: Progress) -> str:
    """The same in one line, for a pipe."""
    part = found.part
    line = f"{part.done:,}/{amount(part.samples, 'sample')}"
    if found.samples_per_s and found.running:
        line += f", {_rate(found)}"
    bad = sum(found.store.bad.values())
    return (
        line
        + (f", {amount(bad, 'bad input')}" if bad else "")
        + (f", {found.ended}" * bool(found.ended))
    )


def _rate(found: Progress) -> str:
    from consumers.progress import clock

    rate = found.samples_per_s
    line = f"{rate:.1f} samples/s, {rate * found.part.views:,.0f} views/s"
    if not found.running:
        return f"{line} in the last build"
    slower = "" if found.run is None else f", slower side: {found.run.bottleneck}"
    return f"{line}, {clock(found.eta_s)} left{slower}"
