"""``report``: write an HTML page that describes a store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from manyviews.commands.inputs import InputOptions, input_options
from manyviews.commands.options import FOLDER, common_options, json_option, say, store_option


@click.command()
@store_option
@click.option("--out", required=True, type=FOLDER, help="HTML file to write.")
@input_options
@click.option(
    "--labels-dir",
    type=FOLDER,
    help="Folder that `labels` wrote, for classes and colours.  [default: those of the inputs]",
)
@click.option(
    "--split-json",
    type=FOLDER,
    help="Split file, for numbers of each part.  [default: that of the labels]",
)
@json_option
@common_options
def report(
    store: Path,
    out: Path,
    inputs: InputOptions,
    labels_dir: Path | None,
    split_json: Path | None,
    as_json: bool,
) -> int:
    """Write an HTML page about a store: its features, views, labels, bad samples and throughput.

    The inputs of the store (--data-dir, --data or --config) give pictures of the bad samples, and
    labels without --labels-dir.

    The page is one file without scripts, and needs no network. For a large store the expensive
    parts are measured on 2,048 samples; the page says so. The store may still be being built.
    Needs matplotlib, which the extra `report` installs.

    \b
    Example:
      python cli.py report --store features --out report.html --labels-dir labels
    """
    from manyviews.operations.report.page import Sources, write

    sources = Sources(store, inputs.collection(), labels_dir, split_json)
    done = write(sources, out)
    if as_json:
        click.echo(json.dumps({"out": str(out), **done}))
    say(f"{done['bytes']:,} bytes: {out}")
    return 0
