"""``check``: look at everything a build will meet, before it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.build import build_config
from commands.options import (
    FOLDER,
    FeatureList,
    common_options,
    device_option,
    dtype_option,
    is_quiet,
    is_verbose,
    json_option,
    model_option,
    say,
    views_option,
    workers_option,
)

if TYPE_CHECKING:
    from operations.check import CheckReport
    from operations.findings import Line

_WIDTH = 80
_LABEL = 17
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_BUILD_OPTIONS = ("data_dir", "features", "models", "workers", "device", "dtype", "views")


@click.command()
@click.option("--data-dir", type=FOLDER, help="Folder of <stem>.jpg posters and <stem>.json.")
@click.option("--store", type=FOLDER, help="Where the store will be, or is; it is not changed.")
@click.option("--split-json", type=FOLDER, help="A split to hold against the samples.")
@click.option("--full", is_flag=True, help="Read every input, not 500 that are evenly spread.")
@click.option("--features", type=FeatureList(), help="Comma-separated.  [default: all four]")
@model_option
@views_option
@workers_option
@device_option
@dtype_option
@click.option(
    "--no-calibration",
    is_flag=True,
    help="Do not load the models: no tokens are counted, and no time is predicted.",
)
@click.option("--config", "toml", type=FOLDER, help="TOML file with any options of build.")
@json_option
@common_options
def check(toml: Path | None, as_json: bool, **options: Any) -> int:
    """Look at everything a build will meet, before it: data, models, machine, time.

    Give it what build will be given. It loads the models that are on this machine, tries the build
    on a few samples in a folder of its own, and predicts how long the whole will take. Nothing is
    fetched, and nothing is written to the store.

    Exits with 1 where a build would fail or be wrong: overlapping splits, missing models, too
    little disk or memory, a store that does not fit. Unusable inputs are warnings, since a build
    goes on with placeholders.

    \b
    Example:
      python cli.py check --data-dir imdb/dataset --store features --split-json imdb/split.json
    """
    from operations.check import run_check

    report = run_check(_request(toml, options), say)
    if as_json:
        click.echo(json.dumps(report.facts()))
    elif not is_quiet():
        show(report)
    return 1 if report.lines("error") else 0


def _request(toml: Path | None, options: dict[str, Any]) -> Any:
    from dataclasses import replace

    from featurestore.config import read_toml
    from operations.check import CheckRequest

    store = options["store"]
    if store is None and toml is not None:
        store = read_toml(toml).get("store")
    given = {name: options[name] for name in _BUILD_OPTIONS}
    config = build_config(toml, {**given, "store": store or Path()})
    return CheckRequest(
        config=replace(config, resume=not config.overwrite),
        has_store=store is not None,
        split_json=options["split_json"],
        full=options["full"],
        calibrate=not options["no_calibration"],
    )


def show(report: CheckReport) -> None:
    """Prints the groups, and at the end how many problems there are, on standard output."""
    for group in report.groups:
        click.echo(_coloured(group.title, bold=True))
        for line in group.lines:
            _show_line(line)
        click.echo()
    errors, warnings = (len(report.lines(level)) for level in ("error", "warning"))
    if errors:
        click.echo(f"{_number(errors, 'error')} to mend first, {_number(warnings, 'warning')}")
    else:
        click.echo(f"ready to build, {_number(warnings, 'warning')}")


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _show_line(line: Line) -> None:
    """``  warning  label  text``, wrapped under the text, and the advice below it."""
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
    # click takes the codes out again where the output is no terminal.
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)
