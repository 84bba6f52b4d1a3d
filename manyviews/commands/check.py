"""``check``: examine the data, models and machine before a build."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.wording import amount
from manyviews.commands.build import build_config
from manyviews.commands.options import (
    FOLDER,
    build_options,
    common_options,
    is_quiet,
    is_verbose,
    json_option,
    say,
    worker_options,
)

if TYPE_CHECKING:
    from consumers.config import BuildConfig
    from manyviews.operations.check.findings import CheckReport, Line

_WIDTH = 80
_LABEL = 17
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command()
@build_options
@worker_options
@click.option("--split-json", type=FOLDER, help="Split file to compare with the samples.")
@click.option("--full", is_flag=True, help="Read all inputs instead of 500 evenly spaced samples.")
@click.option(
    "--no-calibration",
    is_flag=True,
    help="Do not load the models, count tokens, or predict the duration.",
)
@click.option(
    "--sheet", type=FOLDER, help="PNG file to write: the first three samples and their views."
)
@json_option
@common_options
def check(
    toml: Path | None,
    split_json: Path | None,
    full: bool,
    no_calibration: bool,
    sheet: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Check data, models and machine before a build, and predict its duration.

    Takes the same options as build; without --overwrite it checks what build --resume would do.
    It loads the models that are on this machine, builds a few samples into temporary files, and
    predicts how long the whole build will take. Missing models are not fetched, and nothing is
    written to the store.

    Exits with 1 if a build would fail or produce wrong results: overlapping splits, missing models,
    too little disk or memory, a store that does not match. Unusable inputs are warnings, because
    a build uses placeholders for them.

    It shows what was recognized, what a build would compute of it, and the first three samples as
    they would be read.

    \b
    Example:
      python cli.py check --data photos --sheet photos.png
      python cli.py check --data photos --devices cuda:0,cuda:1
      python cli.py check --data-dir imdb/dataset --store features --split-json imdb/split.json
    """
    from consumers.workers.share import Share
    from manyviews.operations.check.check import CheckRequest, run_check

    config, has_store = _config(toml, options)
    devices: tuple[str, ...] = ()
    if config.devices:
        from consumers.device.devices import resolve_devices

        devices = tuple(resolve_devices(config.devices))
        config = replace(config, devices=(), device=devices[0])  # the trial runs on the first
    if config.ray is not None:  # as many machines like this one
        share = Share(0, config.ray_workers)
        config = replace(config, ray=None, ray_workers=0, worker=share)
    request = CheckRequest(
        config=config,
        has_store=has_store,
        split_json=split_json,
        full=full,
        calibrate=not no_calibration,
        sheet=sheet,
        devices=devices,
    )
    report = run_check(request, say)
    if as_json:
        click.echo(json.dumps(report.facts()))
    elif not is_quiet():
        show(report)
    return 1 if report.lines("error") else 0


def _config(toml: Path | None, options: Mapping[str, Any]) -> tuple[BuildConfig, bool]:
    """The configuration of the build to check, and whether its store was named."""
    from consumers.config_file import read_toml

    store = options["store"] or ({} if toml is None else read_toml(toml)).get("store")
    config = build_config(
        toml, {**options, "store": store or Path(), "resume": not options["overwrite"]}
    )
    return replace(config, resume=not config.overwrite), store is not None


def show(report: CheckReport) -> None:
    """Prints the groups, then the number of problems, on standard output."""
    for group in report.groups:
        click.echo(_coloured(group.title, bold=True))
        for line in group.lines:
            _show_line(line)
        click.echo()
    errors, warnings = (len(report.lines(level)) for level in ("error", "warning"))
    if errors:
        click.echo(f"{amount(errors, 'error')} to fix first, {amount(warnings, 'warning')}")
    else:
        click.echo(f"ready to build, {amount(warnings, 'warning')}")


def _show_line(line: Line) -> None:
    """Prints ``  warning  label  text``, wrapped below the text, and the advice below it."""
    head = f"  {line.level:<8} {line.label:<{_LABEL}} "
    indent = " " * len(head)
    text = textwrap.fill(line.text, _WIDTH, initial_indent=head, subsequent_indent=indent)
    level = _coloured(f"{line.level:<8}", fg=_COLOURS[line.level])
    _echo(f"  {level}{text[10:]}")
    if is_verbose() and line.names:
        _wrap(", ".join(map(repr, line.names)), indent, indent)
    if line.advice:
        _wrap(line.advice, f"{indent}-> ", f"{indent}   ")


def _wrap(text: str, first: str, rest: str) -> None:
    _echo(textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=rest))


def _echo(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _coloured(text: str, **style: Any) -> str:
    # click strips the colour codes if the output is not a terminal.
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)
