"""``status``: what a store contains, how fast it grows, and which process writes to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.system.locks import Holder, Unknown
from featurestore.wording import amount
from manyviews.commands.options import common_options, json_option, say, store_option

if TYPE_CHECKING:
    from manyviews.operations.watch.watch import Progress
    from manyviews.operations.watch.workers import Worker

INTERRUPTED = 130
# What --watch knows while there is no store, by whether a process holds its lock.
WAITING = {
    False: "a build creates it when its models are loaded",
    True: "a build holds its lock and is loading its models, or is creating it",
}
# A process that holds the lock may be a build that has not started, or `verify --repair`.
STARTING = "is loading its models or repairing"
# The last line that --watch prints, by how the build ended.
END = {
    "complete": "{store} is complete.",
    "interrupted": "The build was interrupted; build --resume continues it.",
    "failed": "The build failed: {why}",
    "killed": "The build was killed, without logging an end; build --resume continues it.",
    "not complete": "No process is writing to {store}; build --resume continues it.",
    "unknown": "Nothing changes. Whether a build is running is unknown, without file locks.",
}


@click.command()
@store_option
@click.option(
    "--watch",
    is_flag=True,
    help="Refresh every second until the store is complete or no process writes to it.",
)
@json_option
@common_options
def status(store: Path, watch: bool, as_json: bool) -> int:
    """Show what a store contains, how fast it grows, and which process writes to it.

    --watch redraws the status every second on a terminal; in a pipe it prints a line, or with
    --json an object, whenever something changes. It exits with 0 when the store is complete, and
    with 1 when no process writes to an incomplete store. If there is no store yet, it waits for
    one. It never disturbs a build.

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
    progress = Looker(store).look()
    if as_json:
        click.echo(json.dumps(progress.facts()))
    else:
        click.echo("\n".join(status_lines(progress)))
    return 0


def follow(store: Path, *, as_json: bool) -> int:
    """Shows a store until it is complete or no process writes to it; returns the exit code."""
    from rich.console import Console

    from manyviews.operations.watch.watch import watch

    console = Console()
    drawn = console.is_terminal and not as_json

    def waiting(is_locked: bool) -> None:
        say(f"There is no feature store at {store} yet: {WAITING[is_locked]}; waiting.")

    with live(console) if drawn else nullcontext() as show:
        last = None
        for progress in watch(store, waiting=waiting):
            if show is not None:
                show(status_lines(progress))
                continue
            # Everything that a line shows except the time left, which always changes.
            workers = [(worker.pid, worker.state) for worker in progress.workers]
            key = (
                *(progress.part.done, progress.holders, workers),
                *(progress.running, progress.ended),
            )
            if key != last:
                click.echo(json.dumps(progress.facts()) if as_json else status_line(progress))
            last = key
    why = progress.run.why if progress.run else ""
    say(END[progress.ended].format(store=store, why=why))
    if progress.ended == "complete" and not progress.store.sealed:
        say("It is not sealed yet, which build --resume does.")
    return 0 if progress.ended == "complete" else 1


@contextmanager
def live(console: Any) -> Iterator[Callable[[list[str]], None]]:
    """Yields a function that redraws lines in place on a terminal; the last ones stay."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as display:
        yield lambda lines: display.update(Text("\n".join(lines)), refresh=True)


def status_lines(progress: Progress) -> list[str]:
    """The full status of a store as lines of text."""
    part, store = progress.part, progress.store
    features = ", ".join(f"{name} [{dim}]" for name, dim in store.dims.items())
    shape = f"{amount(store.samples, 'sample')} x {amount(store.views, 'view')}"
    lines = [f"{progress.path}: {shape}: {features}"]
    if progress.addition is not None:
        added = ", ".join(part.dims)
        shape = f"{amount(part.samples, 'sample')} x {amount(part.views, 'view')}"
        lines.append(f"being extended: {shape}: {added}")
    state = "complete" if part.complete else "not complete"
    if not progress.is_held and not isinstance(progress.holders, Unknown):
        if not part.complete:
            state += "; build --resume continues"
        elif not part.sealed:
            state += ", but not sealed; build --resume seals it"
    lines.append(
        f"{amount(part.done, 'sample')} done ({part.done / part.samples:.1%}), "
        f"{part.committed:,} of {amount(part.chunks, 'chunk')}, {state}"
    )
    if progress.samples_per_s:
        lines.append(_rate(progress))
    bad = ", ".join(f"{reason} {count:,}" for reason, count in store.bad.items())
    count = sum(store.bad.values())
    holders = (
        f"{amount(count, 'bad input')} with {'a placeholder' if count == 1 else 'placeholders'}"
    )
    lines.append(f"{holders}{bad and f': {bad}'}")
    for modality, count in store.absent.items():
        lines.append(f"{amount(count, 'sample')} without {modality}, whose rows are zeros")
    return lines + _writers(progress)


def _writers(progress: Progress) -> list[str]:
    """Which processes write to the store, or how the last build ended."""
    if progress.workers:
        if progress.ended and progress.part.complete:
            return []
        return [_worker_line(worker, progress) for worker in progress.workers]
    if not isinstance(progress.holders, Unknown) and progress.holders:
        phase = f", which {STARTING}" if progress.is_starting else ""
        return [f"being written by {_process(progress.holders[0])}{phase}"]
    if isinstance(progress.holders, Unknown) and progress.ended == "":
        return ["whether a process is writing to it is unknown: there are no file locks"]
    if progress.run is not None and not progress.store.complete:
        why = progress.run.why.partition("\n")[0]
        return [f"the last build: {progress.run.end or 'killed'}{why and f', {why}'}"]
    return []


def _process(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}"


def _worker_line(worker: Worker, progress: Progress) -> str:
    """One worker: where it runs, and how fast, or how it ended."""
    from consumers.progress import clock

    facts = worker.facts(progress.time)
    name = f"worker {worker.share}" if worker.share else "a worker"
    where = f"process {worker.pid} on {worker.host}"
    if facts["device"]:
        where += f", {facts['device']}"
    done = f"{amount(facts['built'], 'sample')} built"
    words = {
        "starting": "is loading its models",
        "running": f"{facts['samples_per_s']:.1f} samples/s, {done}",
        "silent": f"has logged nothing for {clock(facts['silent_s'])}, {done}",
        "killed": f"killed, without logging an end, {done}",
    }
    why = worker.run.why.partition("\n")[0] if worker.run is not None else ""
    word = words.get(worker.state, f"{worker.state}, {done}{why and f', {why}'}")
    return f"{name}: {where}: {word}"


def status_line(progress: Progress) -> str:
    """The status in one line, for a pipe."""
    part = progress.part
    line = f"{part.done:,}/{amount(part.samples, 'sample')}"
    if progress.samples_per_s and progress.running:
        line += f", {_rate(progress)}"
    if progress.workers:
        line += "".join(
            f", {amount(count, 'worker')} {state}" for state, count in _states(progress).items()
        )
    elif progress.is_starting and not isinstance(progress.holders, Unknown):
        line += f", {_process(progress.holders[0])} {STARTING}"
    bad = sum(progress.store.bad.values())
    return (
        line
        + (f", {amount(bad, 'bad input')}" if bad else "")
        + (f", {progress.ended}" * bool(progress.ended))
    )


def _states(progress: Progress) -> Counter[str]:
    return Counter(worker.state for worker in progress.workers)


def _rate(progress: Progress) -> str:
    from consumers.progress import clock

    rate = progress.samples_per_s
    line = f"{rate:.1f} samples/s, {rate * progress.part.views:,.0f} views/s"
    if not progress.running:
        return f"{line} in the last build"
    slower = "" if progress.slower_side is None else f", slower side: {progress.slower_side}"
    return f"{line}, {clock(progress.eta_s)} left{slower}"
